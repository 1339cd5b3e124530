"""The variants of the C library, and which of them this machine can run. This module does not import torch."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from functools import cache
from pathlib import Path

HERE = Path(__file__).resolve().parent

OPTIONS = ("-O3", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")


@dataclass(frozen=True, slots=True)
class Variant:
    """The library compiled for CPUs with certain features. `flags` are their names in /proc/cpuinfo."""

    name: str
    flags: tuple[str, ...]

    @property
    def options(self) -> tuple[str, ...]:
        """The compiler's options. Each feature is enabled by itself, so that the compiler assumes no others."""
        names = (
            {"bmi1": "bmi", "avx512_bf16": "avx512bf16", "avx512_vnni": "avx512vnni"}.get(flag, flag)
            for flag in self.flags
        )
        return (*OPTIONS, *(f"-m{name}" for name in names), "-mprefer-vector-width=512")

    def build(self, folder: Path = HERE) -> str:
        """The build fingerprint that an up-to-date library contains: a digest of sources and compiler options."""
        digest = hashlib.sha256()
        for source in sorted((*folder.glob("*.c"), *folder.glob("*.h"))):
            digest.update(source.read_bytes())
        digest.update(" ".join(self.options).encode())
        return digest.hexdigest()[:32]

    def is_runnable(self) -> bool:
        """Whether this machine's CPU has all of the features."""
        return cpu_flags().issuperset(self.flags)

    def fault(self, folder: Path = HERE) -> str | None:
        """Why the library file cannot be used; None if it can."""
        return fault_of(library_file(self.name, folder), self.build(folder))


def fault_of(file: Path, build: str) -> str | None:
    """Why a library file cannot be used; None if it can. `build`: its fingerprint. Loading a truncated file would crash
    the process."""
    try:
        content = file.read_bytes()
    except OSError:
        return f"{file.name} does not exist"
    if len(content) < 64 or content[:6] != b"\x7fELF\x02\x01":
        return f"{file.name} is not a 64-bit ELF library"
    (sections,), (size, count) = struct.unpack_from("<Q", content, 40), struct.unpack_from("<2H", content, 58)
    if len(content) < sections + size * count:  # section headers are at the end (System V ABI, chapter 4)
        return f"{file.name} is truncated"
    return None if build.encode() in content else f"{file.name} was built from other sources"


_AVX2 = ("avx2", "fma", "bmi1", "bmi2", "f16c")
_AVX512 = (*_AVX2, "avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl")
VARIANTS = (
    Variant("avx512_bf16", (*_AVX512, "avx512_vnni", "avx512_bf16")),
    Variant("avx512_vnni", (*_AVX512, "avx512_vnni")),
    Variant("avx512", _AVX512),
    Variant("avx2", _AVX2),
)
"""The fastest first."""


def library_file(name: str, folder: Path = HERE) -> Path:
    """Where the library of a variant is."""
    return folder / f"decoder_{name}.so"


@cache
def cpu_flags() -> frozenset[str]:
    """The CPU features in /proc/cpuinfo; empty if it cannot be read."""
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("flags"):
                    return frozenset(line.partition(":")[2].split())
    except OSError:
        pass
    return frozenset()


def cpu_has_bfloat16() -> bool:
    """Whether the CPU has bfloat16 dot products (AVX512-BF16 or AMX)."""
    return not cpu_flags().isdisjoint({"avx512_bf16", "amx_bf16"})
