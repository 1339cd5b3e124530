"""Launches of compiled kernels with less work on the host than Triton's own launcher has.

`JITFunction.run` binds the arguments, specialises each, and makes a key of all that as text, at every launch. Here the
key is a tuple of what decides on the binary: the types of the arguments, and of tensors the dtype and whether the
address is a multiple of 16, of ints whether they are 1 or a multiple of 16. The function that makes the key is
generated once for each combination of argument types. A key that is new goes through Triton's launcher, which compiles
or loads the binary. Later launches call the binary's launcher at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from triton import knobs
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

Key = tuple[Any, ...]


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
                return
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
    enter, leave = knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook
    return bool((enter is not None and getattr(enter, "calls", True)) or (leave is not None and leave.calls))
