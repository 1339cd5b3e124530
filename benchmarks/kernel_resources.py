"""Registers, spills, shared memory, barriers and instructions of compiled kernels, as a table in Markdown.

    python benchmarks/kernel_resources.py [MODULE ...] [--capability 90] [--all] [--json FILE] [--beside FILE]

needs no GPU. `--json` writes the numbers, and `--beside` reads such a file, of an older checkout for example: then each
cell that has changed has both numbers, the older one first. A barrier is counted once for each place in the machine
code, however often it runs.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # not this directory: its queue.py is not the library's

COLUMNS = ("registers", "spills", "shared", "barriers", "instructions")
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(.*?);", re.MULTILINE)

Numbers = dict[str, dict[str, int]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("modules", nargs="*", help="of ember_kernels; all of them without a name")
    parser.add_argument("--capability", type=int, default=90)
    parser.add_argument("--all", action="store_true", help="also what typical models do not launch")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--beside", type=Path, metavar="FILE")
    options = parser.parse_args()
    import triton

    numbers = measure(options.modules, options.capability, options.all)
    if options.json:
        options.json.write_text(json.dumps(numbers, indent=1) + "\n")
    older = json.loads(options.beside.read_text()) if options.beside else None
    print(f"triton {triton.__version__}, sm_{options.capability}\n")
    print(table(numbers, older))


def measure(modules: list[str], capability: int, is_all: bool) -> Numbers:
    """The numbers of each kernel, by module and specialisation."""
    from ember_kernels import compile as kernels

    numbers = {}
    for module in modules or kernels.kernel_modules():
        for specialisation in kernels.specialisations_of(module, capability):
            if is_all or specialisation.typical:
                compiled, binary = kernels.compile_binary(module, specialisation, capability)
                code = _INSTRUCTION.findall(_disassemble(binary.asm["cubin"]))
                numbers[compiled.name.partition(".")[2]] = {
                    "registers": compiled.registers,
                    "spills": compiled.spills,
                    "shared": compiled.shared_bytes,
                    "barriers": sum("BAR.SYNC" in line for line in code),
                    "instructions": sum("NOP" not in line for line in code),
                }
    return numbers


def table(numbers: Numbers, older: Numbers | None) -> str:
    """A line for each kernel; beside older numbers only those that have changed."""
    lines = [f"| kernel | {' | '.join(COLUMNS)} |", "|---|" + "---|" * len(COLUMNS)]
    for name, row in numbers.items():
        was: dict[str, Any] = (older or {}).get(name, {})
        if older is None or was != row:
            lines.append(f"| `{name}` | {' | '.join(_cell(row[each], was.get(each)) for each in COLUMNS)} |")
    return "\n".join(lines)


def _cell(number: int, was: int | None) -> str:
    return str(number) if was in (None, number) else f"{was} → {number}"


def _disassemble(cubin: bytes) -> str:
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.nvdisasm.path, "-c", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    main()
