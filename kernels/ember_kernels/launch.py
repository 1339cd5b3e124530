"""Launches of compiled kernels with less work on the host than Triton's own launcher has.

`JITFunction.run` binds the arguments, specialises each, and makes a key of all that as text, at every launch. Here the
key is a tuple of what decides on the binary: the types of the arguments, and of tensors the dtype and whether the
address is a multiple of 16, of ints whether they are 1 or a multiple of 16. The function that makes the key is
generated once for each combination of argument types. A key that is new goes through Triton's launcher, which compiles
or loads the binary. Later launches call the binary's launcher at once.

The layers of a decoder are alike: in one step an operation of theirs launches the same kernels with the same grids and
numbers, and with other tensors. `repeat` makes the first layer's call and then repeats its launches for the others,
without the code before them: checks, choices of tiles, keys.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any

from triton import knobs
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

Key = tuple[Any, ...]
_captured: list[Launch | None] | None = None  # by the call that `repeat` makes; None: a launch through Triton


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
        self._keys: dict[tuple[type, ...], Callable[[tuple[Any, ...]], Key] | None] = {}
        self._binaries: dict[Key, tuple[Any, Any, Any, tuple[Any, ...]]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.kernel, name)

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Any]:
        def launch(*arguments: Any, **constants: Any) -> None:
            self._launch(grid, arguments, constants)

        return launch

    def _launch(self, grid: tuple[int, ...], arguments: tuple[Any, ...], constants: dict[str, Any]) -> None:
        active = driver.active
        device = active.get_current_device()
        types = tuple(map(type, arguments))
        try:
            make_key = self._keys[types]
        except KeyError:
            make_key = self._keys[types] = self._key_function(arguments)
        key = None
        if make_key is not None and not _is_watched():
            key = (device, types, make_key(arguments), *constants, *constants.values())
            known = self._binaries.get(key)
            if known is not None:
                run, function, metadata, rest = known
                x, y, z = (*grid, 1, 1)[:3]
                stream = active.get_current_stream(device)
                run(x, y, z, stream, function, metadata, None, None, None, *arguments, *rest)
                if _captured is not None:
                    _captured.append(Launch(run, (x, y, z), function, metadata, [*arguments, *rest]))
                return
        if _captured is not None:
            _captured.append(None)  # once it is loaded, the next call can be repeated
        binary = self.kernel.run(*arguments, grid=grid, warmup=False, **constants)
        if key is not None and binary is not None:
            given = self._defaults | constants
            rest = tuple(given[name] for name in self._names)
            self._binaries[key] = binary.run, binary.function, binary.packed_metadata, rest

    def _key_function(self, arguments: tuple[Any, ...]) -> Callable[[tuple[Any, ...]], Key] | None:
        """The function that describes arguments of these types; None: Triton has to look at them."""
        if len(arguments) != self.num_plain:
            return None
        parts = []
        for i, (argument, parameter) in enumerate(zip(arguments, self.kernel.params, strict=False)):
            is_aligned = not (parameter.do_not_specialize or parameter.do_not_specialize_on_alignment)
            if hasattr(argument, "data_ptr"):
                parts.append(f"a[{i}].dtype")
                if is_aligned:
                    parts.append(f"a[{i}].data_ptr() % 16 == 0")
            elif isinstance(argument, int) and not isinstance(argument, bool):
                parts.append(f"(a[{i}] + 0x80000000) >> 32")  # 0: it fits into 32 bits
                parts.append(f"a[{i}] >> 63")  # 0 or -1: it fits into 64 bits with a sign
                if not parameter.do_not_specialize:
                    parts.append(f"1 if a[{i}] == 1 else a[{i}] % 16 == 0 and 16")
            elif not (argument is None or isinstance(argument, float | bool)):
                return None
        described: Callable[[tuple[Any, ...]], Key] = eval(f"lambda a: ({''.join(part + ', ' for part in parts)})")
        return described


def _is_watched() -> bool:
    """Whether a profiler has hooks for launches, which Triton's launcher calls."""
    runtime = knobs.runtime
    enter, leave = runtime.launch_enter_hook, runtime.launch_exit_hook
    return bool((enter is not None and getattr(enter, "calls", True)) or (leave is not None and leave.calls))


@dataclass(slots=True)
class Launch:
    """One launch of a loaded binary. `places`: (index in `line`, index of the tensor that is put there)."""

    run: Callable[..., Any]
    grid: tuple[int, int, int]
    function: Any
    metadata: Any
    arguments: list[Any]
    places: tuple[tuple[int, int], ...] = ()
    line: list[Any] = field(default_factory=list)  # everything that `run` is called with, the stream left out


STREAM = 3  # its index in a line


Launches = dict[Hashable, list[Launch] | None]


def repeat(
    launches: Launches, key: Hashable, tensors: tuple[Any, ...], call: Callable[[], Any], num_checked: int | None = None
) -> None:
    """`call()`, or the launches that the last call under this key has made, with these tensors in place of its own.

    Calls of one key differ in nothing but these tensors, which the caller holds on to. None of the others may be
    specific to a call, nor may a kernel get a part of one of these that does not begin where it begins. `num_checked`:
    the caller knows that the tensors after so many have addresses that are multiples of 16; None: it knows of none.
    """
    global _captured
    known = launches.get(key)
    if known is not None and not _is_watched() and are_aligned(tensors[:num_checked]):
        active = driver.active
        stream = active.get_current_stream(active.get_current_device())
        for launch in known:
            line = launch.line.copy()
            line[STREAM] = stream
            for at, index in launch.places:
                line[at] = tensors[index]
            launch.run(*line)
        return
    captured: list[Launch | None] = []
    _captured = captured
    try:
        call()
    finally:
        _captured = None
    launches[key] = _repeatable(captured, tensors)


def are_aligned(tensors: Iterable[Any]) -> bool:
    """Whether all addresses are multiples of 16, which binaries for repeated launches rely on."""
    for tensor in tensors:  # noqa: SIM110 - a generator takes longer than the checks
        if tensor.data_ptr() & 15:
            return False
    return True


def _repeatable(captured: list[Launch | None], tensors: tuple[Any, ...]) -> list[Launch] | None:
    """The launches without the tensors, which are not kept; None if they cannot be repeated."""
    addresses = [tensor.data_ptr() for tensor in tensors]
    by_address = {address: index for index, address in enumerate(addresses)}
    if len(by_address) < len(tensors) or any(address % 16 or not address for address in addresses):
        return None
    made = []
    for launch in captured:
        if launch is None:
            return None
        head = [*launch.grid, None, launch.function, launch.metadata, None, None, None]
        launch.line, places = [*head, *launch.arguments], []
        for at, argument in enumerate(launch.arguments, len(head)):
            if hasattr(argument, "data_ptr") and (index := by_address.get(argument.data_ptr())) is not None:
                places.append((at, index))
                launch.line[at] = None
        launch.places, launch.arguments = tuple(places), []
        made.append(launch)
    return made or None
