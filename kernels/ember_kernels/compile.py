"""Compile every kernel without a GPU, so that an image contains them and a boot compiles nothing.

    python -m ember_kernels.compile [--capabilities 80 90 120] [--modules NAME ...] [--typical]

fills Triton's cache and prints registers, spills and shared memory of each kernel. TRITON_CACHE_DIR must already be the
path that the worker will use: the cache contains absolute paths, so a moved cache is not found.

What makes the cache key. `JITFunction.run` turns the arguments of a launch into
    signature   {argument: type}: "*bf16" of a tensor's dtype, "i32"/"i64"/"u64" of an int's range, "fp32" of a float,
                "constexpr" of a tl.constexpr argument, of None and of an int that is 1 (unless `do_not_specialize`)
    constants   {argument position: value} of the "constexpr" ones
    attributes  {argument position: [["tt.divisibility", 16]]} of ints and of data pointers that are multiples of 16
                (not of arguments named in `do_not_specialize`; with that list a pointer keeps no attribute either)
    options     num_warps, num_stages, debug, ... merged with the backend's defaults for the target (the capability)
and `triton.compile` hashes: Triton's own files, the kernel's source with that of every @triton.jit function it calls,
its line number and the constexpr globals it reads (not its path), attributes, signature, constants, ptxas' version,
target, options, and the environment variables that Triton lists as invalidating. The device, the grid and tensor
shapes are not in it.

The keys have to be those of a launch. Nothing here therefore calls `triton.compile`: a stub driver reports the wanted
target, and `JITFunction.run(..., warmup=True)` is called with stubs for the arguments. That runs the code of a launch
up to the loading of the binary, in any Triton version. A kernel module only has to list its specialisations. There are
two ways to find what a list lacks. On a GPU, put `cache_misses()` around a boot. Without one, compare
`listed(capability)` with the result of `dry_run(capability)`: there the public functions take CPU tensors and go
through the launcher, but nothing is compiled or launched.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import Any

import torch

from ember_kernels import early
from ember_kernels.launchers import build_launcher, needs_launchers
from ember_kernels.specialisation import DTYPES, Specialisation, device_capability

CAPABILITIES = (80, 86, 89, 90, 100, 120)

# Ints in the range for which Triton chooses the type. They are odd, so that they get no divisibility attribute.
INTS = {"i32": 4097, "i64": (1 << 40) + 1, "u64": (1 << 63) + 1}


@dataclass(frozen=True)
class Compiled:
    """The result of a compilation: `registers` and `spills` (bytes of local memory) per thread, `shared_bytes` per
    program, and `error` if it failed."""

    name: str
    capability: int
    registers: int
    spills: int
    shared_bytes: int
    seconds: float
    error: str = ""


@dataclass(frozen=True)
class _Pointer:
    """A stub for a tensor argument: the launcher reads only its dtype and address."""

    dtype: torch.dtype
    address: int

    def data_ptr(self) -> int:
        return self.address


class _Driver:
    """A stub for Triton's driver: a device of the wanted capability whose launches do nothing.

    Its device number differs from that of any real device, since JITFunction has one cache per device number.
    """

    def __init__(self, capability: int, launchers: bool = False) -> None:
        self.capability = capability
        self.launchers = launchers
        self.utils = self  # Triton keeps these functions in an object of their own

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return 1000 + self.capability

    def get_current_stream(self, device: int) -> int:
        return 0

    def launcher_cls(self, src: Any, metadata: Any) -> Callable[..., None]:
        if self.launchers and needs_launchers():
            build_launcher(src, metadata)
        return lambda *args: None

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple[None, None, int, int, int]:
        return None, None, 0, 0, 1024

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 227 << 10}


def compile_one(module: str, specialisation: Specialisation, capability: int, launchers: bool = False) -> Compiled:
    """Compile one specialisation, or find it in Triton's cache. Raises Triton's exceptions, with the kernel's name."""
    return compile_binary(module, specialisation, capability, launchers)[0]


def compile_binary(
    module: str, specialisation: Specialisation, capability: int, launchers: bool = False
) -> tuple[Compiled, Any]:
    """Compile as `compile_one` does. It also returns Triton's compiled object, which has the machine code."""
    name = f"{module}.{specialisation.name}"
    start = time.perf_counter()
    try:
        with _active(_Driver(capability)):
            binary = _run(name, specialisation)
    except Exception as error:
        error.add_note(f"while compiling {name} for sm_{capability}")
        raise
    if launchers and needs_launchers():
        build_launcher(binary.src, binary.metadata)
    seconds = time.perf_counter() - start
    registers, stack, static_shared = _resources(binary.asm["cubin"])
    return Compiled(name, capability, registers, stack, binary.metadata.shared + static_shared, seconds), binary


def compile_all(
    capabilities: Iterable[int],
    modules: Sequence[str] | None = None,
    *,
    all: bool = True,
    in_turns: bool = False,
    processes: int | None = None,
    launchers: bool = False,
) -> list[Compiled]:
    """Compile the specialisations of `modules` (None: of every kernel module) for each capability.

    all=False: only those marked `typical`. in_turns: each specialisation for one of the capabilities, every kernel for
    all of them. processes: None for one per CPU. launchers: build those too. A kernel that does not compile has its
    error in its row, and the others are compiled.
    """
    modules, capabilities = kernel_modules() if modules is None else modules, list(capabilities)
    work: list[tuple[str, int, int, bool]] = []
    for turn, capability in enumerate(capabilities):
        for module in modules:
            made = specialisations_of(module, capability)
            chosen = [index for index, each in enumerate(made) if all or each.typical]
            if in_turns:
                chosen = _in_turns(made, chosen, turn, len(capabilities))
            work += [(module, index, capability, launchers) for index in chosen]
    processes = min(processes or os.cpu_count() or 1, len(work))
    if processes <= 1:
        return [_compile(item) for item in work]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        return list(pool.map(_compile, work))


def kernel_modules() -> list[str]:
    """Names of the modules of this package that list specialisations."""
    package = importlib.import_module(__package__ or "ember_kernels")
    names = sorted(
        module.name
        for module in pkgutil.iter_modules(package.__path__)
        if module.name not in ("compile", "launch", "launchers")
    )
    return [name for name in names if hasattr(importlib.import_module(f"{package.__name__}.{name}"), "specialisations")]


def _in_turns(made: list[Specialisation], chosen: list[int], turn: int, turns: int) -> list[int]:
    """The indices, among the `chosen`, of one turn: every `turns`-th of each kernel, or all if it has fewer."""
    of_kernel: dict[int, list[int]] = {}
    for index in chosen:
        of_kernel.setdefault(id(made[index].kernel), []).append(index)
    return [index for own in of_kernel.values() for index in (own[turn::turns] if len(own) >= turns else own)]


@contextmanager
def dry_run(capability: int) -> Iterator[set[str]]:
    """Yield the identities (see `listed`) of the launches made inside the block, which compile and launch nothing.

    Public functions may be called with CPU tensors: torch allocates them with the alignment of CUDA tensors.
    """
    with compile_only(capability), _identities() as identities:
        yield identities


@contextmanager
def compile_only(capability: int, launchers: bool = False) -> Iterator[None]:
    """Let launches inside the block fill Triton's cache with what they ask for, and launch nothing.

    Tensors may be on the CPU or without memory. launchers: with the C launchers that Triton 3.6 wants.
    """
    properties = torch.cuda.get_device_capability
    torch.cuda.get_device_capability = lambda device=None: divmod(capability, 10)  # type: ignore[assignment]
    device_capability.cache_clear()
    try:
        with _active(_Driver(capability, launchers)):
            yield
    finally:
        torch.cuda.get_device_capability = properties  # type: ignore[assignment]
        device_capability.cache_clear()


def listed(capability: int, modules: Sequence[str] | None = None) -> set[str]:
    """Identities of all specialisations of `modules` (None: of every kernel module), without compiling them.

    An identity is the launcher's input to the compiler: kernel, signature, constants, attributes and options, as JSON.
    """
    with _active(_Driver(capability)), _identities() as identities:
        for module in kernel_modules() if modules is None else modules:
            for specialisation in specialisations_of(module, capability):
                _run(f"{module}.{specialisation.name}", specialisation)
    return identities


@contextmanager
def cache_misses() -> Iterator[list[str]]:
    """Yield a list that collects the names of the kernels that Triton compiles inside the block."""
    from triton import knobs

    misses: list[str] = []
    previous = knobs.compilation.listener

    def listener(*, src: Any, cache_hit: bool, **rest: Any) -> None:
        if not cache_hit:
            misses.append(f"{src.name} {src.signature} {src.constants} {src.attrs}")

    knobs.compilation.listener = listener
    try:
        yield misses
    finally:
        knobs.compilation.listener = previous


def table(rows: Iterable[Compiled]) -> str:
    """The rows as text in columns, one line per row."""
    lines = [f"{'kernel':<72} {'sm':>4} {'registers':>9} {'spills B':>8} {'shared B':>8} {'seconds':>7}"]
    lines += [
        f"{r.name:<72} {r.capability:>4} {r.registers:>9} {r.spills:>8} {r.shared_bytes:>8} {r.seconds:>7.2f}"
        for r in rows
    ]
    return "\n".join(lines)


def specialisations_of(module: str, capability: int) -> list[Specialisation]:
    """What a kernel module lists for a device of this capability."""
    made = list(importlib.import_module(f"{__package__ or 'ember_kernels'}.{module}").specialisations(capability))
    if capability not in early.CAPABILITIES:
        return made
    return [as_early(each) if early.can_be_early(each.kernel) else each for each in made]


def as_early(specialisation: Specialisation) -> Specialisation:
    """The binary of the same kernel that is started early (`ember_kernels.early`)."""
    constants, options = specialisation.constants | {"EARLY": True}, specialisation.options | early.OPTIONS
    return replace(specialisation, name=f"{specialisation.name} early", constants=constants, options=options)


def _compile(item: tuple[str, int, int, bool]) -> Compiled:
    module, index, capability, launchers = item
    specialisation = specialisations_of(module, capability)[index]
    try:
        return compile_one(module, specialisation, capability, launchers)
    except Exception as error:
        return Compiled(f"{module}.{specialisation.name}", capability, 0, 0, 0, 0.0, f"{type(error).__name__}: {error}")


def _run(name: str, specialisation: Specialisation) -> Any:
    """Run the launcher without launching. Returns the binary, or None if a hook forbids the compilation."""
    kernel = specialisation.kernel
    if not hasattr(kernel, "device_caches"):
        raise RuntimeError(f"{name}: kernels cannot be compiled under TRITON_INTERPRET=1; unset it")
    from ember_kernels.launch import settle

    settle(kernel)
    return kernel.run(
        *_arguments(name, specialisation),
        grid=(1, 1, 1),
        warmup=True,
        num_warps=specialisation.num_warps,
        num_stages=specialisation.num_stages,
        **specialisation.options,
    )


@contextmanager
def _identities() -> Iterator[set[str]]:
    """Collect the identities of kernels that would be compiled inside the block, and compile none."""
    from triton import knobs

    identities: set[str] = set()
    previous = knobs.runtime.jit_cache_hook

    def hook(*, compile: dict[str, Any], **rest: Any) -> bool:
        data = json.loads(compile["specialization_data"])
        del data["key"]  # the same again, with the options in the order in which the launch names them
        identities.add(json.dumps(data, sort_keys=True))
        return True

    knobs.runtime.jit_cache_hook = hook
    try:
        yield identities
    finally:
        knobs.runtime.jit_cache_hook = previous


@contextmanager
def _active(stand_in: _Driver) -> Iterator[None]:
    from triton.runtime.driver import driver

    previous = driver._active
    driver.set_active(stand_in)
    try:
        yield
    finally:
        driver._active = previous


def _arguments(name: str, specialisation: Specialisation) -> list[Any]:
    """Stubs for the launch's arguments, in the kernel's order."""
    arguments: list[Any] = []
    known = {parameter.name for parameter in specialisation.kernel.params}
    if unknown := sorted((set(specialisation.signature) | set(specialisation.constants)) - known):
        raise ValueError(f"{name}: the kernel has no argument {', '.join(unknown)}")
    if unknown := sorted(set(specialisation.divisible) - set(specialisation.signature)):
        raise ValueError(f"{name}: divisible but not in the signature: {', '.join(unknown)}")
    for parameter in specialisation.kernel.params:
        if parameter.name in specialisation.constants:
            arguments.append(specialisation.constants[parameter.name])
        elif parameter.name in specialisation.signature:
            divisible = parameter.name in specialisation.divisible
            arguments.append(_argument(name, parameter.name, specialisation.signature[parameter.name], divisible))
        elif parameter.has_default:
            arguments.append(parameter.default)
        else:
            raise ValueError(f"{name}: neither signature nor constants have the argument {parameter.name}")
    return arguments


def _argument(name: str, parameter: str, kind: str, divisible: bool) -> Any:
    if kind.startswith("*") and kind[1:] in DTYPES:
        return _Pointer(DTYPES[kind[1:]], 4096 if divisible else 4097)
    if kind in INTS:
        return INTS[kind] + 15 if divisible else INTS[kind]
    if kind == "fp32":
        return 0.5
    if kind in ("i1", "u1"):
        return True
    raise ValueError(f"{name}: {parameter} has the unknown type {kind!r}")


def _resources(cubin: bytes) -> tuple[int, int, int]:
    """Registers and stack bytes (spills) a thread, static shared memory in bytes, as cuobjdump reports them."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    numbers = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", report)}
    return numbers["REG"], numbers["STACK"] + numbers["LOCAL"], numbers["SHARED"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--capabilities", type=int, nargs="+", default=list(CAPABILITIES))
    parser.add_argument("--modules", nargs="+", default=None, help="kernel modules; all of them without it")
    parser.add_argument("--typical", action="store_true", help="only what a boot of a typical model asks for")
    parser.add_argument("--in-turns", action="store_true", help="each specialisation for one of the capabilities")
    parser.add_argument("--processes", type=int, default=None)
    parser.add_argument("--max-spills", type=int, default=None, help="fail if a kernel spills more bytes a thread")
    parser.add_argument("--launchers", action="store_true", help="also build the C launchers that Triton 3.6 wants")
    options = parser.parse_args()
    start = time.perf_counter()
    choice = {
        "all": not options.typical,
        "in_turns": options.in_turns,
        "processes": options.processes,
        "launchers": options.launchers,
    }
    rows = compile_all(options.capabilities, options.modules, **choice)
    print(table(rows))
    print(f"{len(rows)} kernels, {time.perf_counter() - start:.1f} s")
    problems = [f"{row.name} for sm_{row.capability}: {row.error}" for row in rows if row.error]
    if options.max_spills is not None:
        problems += [
            f"{row.name} for sm_{row.capability} spills {row.spills} bytes a thread, more than {options.max_spills}"
            for row in rows
            if row.spills > options.max_spills
        ]
    if problems:
        raise SystemExit("\n".join(problems))


if __name__ == "__main__":
    main()
