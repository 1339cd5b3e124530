"""Launches of compiled kernels with less work on the host than Triton's own launcher has.

`JITFunction.run` binds the arguments, specialises each, and makes a key of all that as text, at every launch. Here the
key is a tuple of what decides on the binary: the types of the arguments, and of tensors the dtype and whether the
address is a multiple of 16, of ints whether they are 1 or a multiple of 16. The function that makes the key is
generated once for each combination of argument types. A key that is new goes through Triton's launcher, which compiles
or loads the binary. Later launches call the binary's launcher at once.

The layers of a decoder are alike: in one step an operation of theirs launches the same kernels with the same grids and
numbers, and with other tensors. `Launches` keeps the first layer's launches as complete lines of arguments, in which
pointers are addresses. The other layers write theirs into these lines and call the launchers' C functions, without the
code before them: checks, choices of tiles, keys, and Triton's launcher in Python.
"""

from __future__ import annotations

import copy
import dis
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from triton import knobs
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from ember_kernels import early

Key = tuple[Any, ...]
_captured: list[Launch | None] | None = None  # by the call that `Launches.make` makes; None: a launch through Triton


def cdiv(x: int, y: int) -> int:
    """x / y, rounded up. Triton's own function takes microseconds on the host."""
    return -(-x // y)


def next_power_of_2(x: int) -> int:
    """The least power of two from x on. Triton's own function takes microseconds on the host."""
    return 1 << (x - 1).bit_length()


def direct(kernel: Any) -> Any:
    """A decorator above @triton.jit: the kernel is launched directly. In Triton's interpreter it stays as it is.

    A launch gives all arguments that are not tl.constexpr by position, and the others by name.
    """
    return Direct(kernel) if isinstance(kernel, JITFunction) else kernel


class Direct:
    """A kernel with its loaded binaries. Other attributes are those of the JIT function."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        params = kernel.params
        self.num_plain = sum(not parameter.is_constexpr for parameter in params)
        if any(parameter.is_constexpr for parameter in params[: self.num_plain]):
            raise TypeError(f"{kernel.__name__}: tl.constexpr arguments must come last")
        self._defaults = {p.name: p.default for p in params[self.num_plain :] if p.has_default}
        self._names = [parameter.name for parameter in params[self.num_plain :]]
        self._keys: dict[tuple[type, ...], Callable[..., Key] | None] = {}
        self._binaries: dict[Key, Binary] = {}
        self._can_be_early = early.can_be_early(kernel)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.kernel, name)

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Any]:
        def launch(*arguments: Any, **constants: Any) -> None:
            self._launch(grid, arguments, constants)

        return launch

    def _launch(self, grid: tuple[int, ...], arguments: tuple[Any, ...], constants: dict[str, Any]) -> None:
        active = driver.active
        device = active.get_current_device()
        if early.CAPABILITIES and self._can_be_early and active.get_current_target().arch in early.CAPABILITIES:
            constants = {**constants, "EARLY": True, **early.OPTIONS}
        types = tuple(map(type, arguments))
        try:
            make_key = self._keys[types]
        except KeyError:
            make_key = self._keys[types] = self._key_function(arguments)
        key = None
        if make_key is not None and not _is_watched():
            key = (device, make_key, make_key(*arguments), *constants, *constants.values())
            known = self._binaries.get(key)
            if known is not None:
                x, y, z = (*grid, 1, 1)[:3]
                stream = active.get_current_stream(device)
                if known.is_nested:
                    known.function(x, y, z, stream, *known.head, (*arguments, *known.constants))
                else:
                    known.function(x, y, z, stream, *known.head, *arguments, *known.constants)
                if _captured is not None:
                    _captured.append(Launch(known, (x, y, z, stream), arguments))
                return
        if _captured is not None:
            _captured.append(None)  # once it is loaded, the next call can be repeated
        settle(self.kernel)
        loaded = self.kernel.run(*arguments, grid=grid, warmup=False, **constants)
        if key is not None and loaded is not None:
            values = self._defaults | constants
            self._binaries[key] = make_binary(loaded, arguments, tuple(values[name] for name in self._names))

    def _key_function(self, arguments: tuple[Any, ...]) -> Callable[..., Key] | None:
        """The function that describes arguments of these types; None: Triton has to look at them."""
        if len(arguments) != self.num_plain:
            return None
        parts = []
        for i, (argument, parameter) in enumerate(zip(arguments, self.kernel.params, strict=False)):
            is_aligned = not (parameter.do_not_specialize or parameter.do_not_specialize_on_alignment)
            if hasattr(argument, "data_ptr"):
                parts.append(f"a{i}.dtype")
                if is_aligned:
                    parts.append(f"a{i}.data_ptr() & 15 == 0")
            elif isinstance(argument, int) and not isinstance(argument, bool):
                # 0: it fits into 32 bits. 0 and -1 after it: it fits into 64 bits with a sign.
                parts.append(f"0 if -0x80000000 <= a{i} <= 0x7FFFFFFF else (1, a{i} >> 63)")
                if not parameter.do_not_specialize:
                    parts.append(f"a{i} & 15 == 0 or a{i} == 1 and 1.5")
            elif not (argument is None or isinstance(argument, float | bool)):
                return None
        names = ", ".join(f"a{i}" for i in range(len(arguments)))
        described: Callable[..., Key] = eval(f"lambda {names}: ({''.join(part + ', ' for part in parts)})")
        return described


def settle(kernel: Any) -> None:
    """Compute a kernel's part of the cache's keys after that of every function that it calls.

    Triton leaves the global constants of a called function out if it meets that function for the first time. The key
    would then depend on what else the process has launched before, and a binary in the image would not be found.
    """
    if kernel.hash is None:
        # `co_names` would have attributes too: a function named `dot` calls `tl.dot`.
        names = {each.argval for each in dis.get_instructions(kernel.fn) if each.opname == "LOAD_GLOBAL"}
        for name in sorted(names):
            called = kernel.fn.__globals__.get(name)
            if isinstance(called, JITFunction) and called is not kernel:
                settle(called)
        _ = kernel.cache_key


def _is_watched() -> bool:
    """Whether a profiler has hooks for launches, which Triton's launcher calls."""
    runtime = knobs.runtime
    enter, leave = runtime.launch_enter_hook, runtime.launch_exit_hook
    return bool((enter is not None and getattr(enter, "calls", True)) or (leave is not None and leave.calls))


@dataclass(frozen=True, slots=True)
class Binary:
    """A loaded binary, and how it is launched: function(x, y, z, stream, *head, *arguments, *constants), where the
    kernel's arguments and constants may also be one tuple (`is_nested`)."""

    function: Callable[..., Any]
    head: tuple[Any, ...]
    is_nested: bool
    constants: tuple[Any, ...]  # the arguments after those that a launch gives
    pointers: tuple[int, ...]  # which of the arguments are tensors


class Launch(NamedTuple):
    """One launch of a loaded binary."""

    binary: Binary
    place: tuple[int, int, int, int]  # the grid and the stream
    arguments: tuple[Any, ...]


def make_binary(loaded: Any, arguments: tuple[Any, ...], constants: tuple[Any, ...]) -> Binary:
    """Describe a binary for launches with such arguments.

    Triton's launcher is Python code that calls a C function with more arguments. Which ones is found by letting a copy
    of it call something else. A launcher that has to do more at each launch, such as to allocate scratch memory, is
    called itself.
    """
    pointers = tuple(i for i, argument in enumerate(arguments) if hasattr(argument, "data_ptr"))
    run, head = loaded.run, (loaded.function, loaded.packed_metadata, None, None, None)
    sizes = (getattr(run, name, None) for name in ("global_scratch_size", "profile_scratch_size"))
    if all(size == 0 for size in sizes) and not getattr(run, "gsan_enabled", False):
        calls: list[tuple[Any, ...]] = []
        observed = copy.copy(run)
        observed.launch = lambda *given: calls.append(given)
        place = tuple(object() for _ in range(4))
        stand_ins = tuple(object() for _ in range(len(arguments) + len(constants)))
        observed(*place, *head, *stand_ins)
        (given,) = calls
        if given[:4] == place and given[-1] == stand_ins:
            return Binary(run.launch, given[4:-1], True, constants, pointers)
        if given[:4] == place and given[-len(stand_ins) :] == stand_ins:
            return Binary(run.launch, given[4 : -len(stand_ins)], False, constants, pointers)
    return Binary(run, head, False, constants, pointers)


# A launcher, its line of arguments, the list that has those of the kernel (the line itself, or what becomes its last
# element as a tuple), and the places of the addresses in that list, each with the index of the address.
Line = tuple[Callable[..., Any], list[Any], list[Any], list[tuple[int, int]]]


class Launches:
    """The launches of one step, by what calls of an operation have in common.

    Calls of one key differ in nothing but the addresses of some tensors, which the caller holds on to. None of the
    other tensors may be specific to a call, nor may a kernel get a part of one of these that does not begin where it
    begins. All launches of a step are in one stream.
    """

    def __init__(self) -> None:
        self._known: dict[Hashable, list[Line] | None] = {}
        self._kept: list[Any] = []  # the other tensors, of which lines have the addresses

    def repeat(self, key: Hashable, addresses: Sequence[int]) -> bool:
        """Repeat the launches of the last call under this key, with these addresses. Returns whether it did; otherwise
        the call has to be made."""
        known = self._known.get(key)
        if known is None:
            return False
        for address in addresses:
            if address & 15:  # which binaries rely on
                return False
        for run, line, arguments, places in known:
            for at, index in places:
                arguments[at] = addresses[index]
            if arguments is not line:
                line[-1] = tuple(arguments)
            run(*line)
        return True

    def make(self, key: Hashable, addresses: Sequence[int], call: Callable[[], Any]) -> None:
        """`call()`, whose launches are kept to be repeated, if all of them can be."""
        global _captured
        captured: list[Launch | None] = []
        _captured = captured
        try:
            call()
        finally:
            _captured = None
        self._known[key] = self._lines(captured, addresses)

    def _lines(self, captured: list[Launch | None], addresses: Sequence[int]) -> list[Line] | None:
        """The lines of arguments of launches without the addresses; None if the launches cannot be repeated."""
        indexes = {address: index for index, address in enumerate(addresses)}
        if len(indexes) < len(addresses) or any(address & 15 or not address for address in addresses):
            return None
        lines = []
        for launch in captured:
            if launch is None:
                return None
            lines.append(self._line(launch, indexes))
        return lines or None

    def _line(self, launch: Launch, indexes: dict[int, int]) -> Line:
        binary = launch.binary
        arguments, places = list(launch.arguments), []
        for at in binary.pointers:
            address = arguments[at].data_ptr()
            index = indexes.get(address)
            if index is None:
                self._kept.append(arguments[at])
            else:
                places.append((at, index))
            arguments[at] = address
        head = [*launch.place, *binary.head]
        if binary.is_nested:
            return binary.function, [*head, None], [*arguments, *binary.constants], places
        line = [*head, *arguments, *binary.constants]
        return binary.function, line, line, [(len(head) + at, index) for at, index in places]
