"""The types of tensors in GGUF files: blocks of quantised elements, and plain numbers.

Source: ggml's `enum ggml_type` and its block structures (ggml-common.h).
"""

from __future__ import annotations

from typing import NamedTuple


class GgmlType(NamedTuple):
    """A type: `size` bytes hold `elements` consecutive elements of a row."""

    name: str
    elements: int
    size: int

    def row_bytes(self, columns: int) -> int:
        """The number of bytes of a row with this many elements, a multiple of `elements`."""
        return columns // self.elements * self.size


TYPES = {
    0: GgmlType("F32", 1, 4),
    1: GgmlType("F16", 1, 2),
    2: GgmlType("Q4_0", 32, 18),
    3: GgmlType("Q4_1", 32, 20),
    6: GgmlType("Q5_0", 32, 22),
    7: GgmlType("Q5_1", 32, 24),
    8: GgmlType("Q8_0", 32, 34),
    10: GgmlType("Q2_K", 256, 84),
    11: GgmlType("Q3_K", 256, 110),
    12: GgmlType("Q4_K", 256, 144),
    13: GgmlType("Q5_K", 256, 176),
    14: GgmlType("Q6_K", 256, 210),
    20: GgmlType("IQ4_NL", 32, 18),
    23: GgmlType("IQ4_XS", 256, 136),
    28: GgmlType("F64", 1, 8),
    30: GgmlType("BF16", 1, 2),
    39: GgmlType("MXFP4", 32, 17),
}
"""The types that are served, by their numbers in files."""

NUMBERS = {each.name: number for number, each in TYPES.items()}
BY_NAME = {each.name: each for each in TYPES.values()}
PLAIN = frozenset(name for name, each in BY_NAME.items() if each.elements == 1)
BLOCKS = {name: each for name, each in BY_NAME.items() if each.elements > 1}
"""The quantised types by name."""

OTHER_TYPES = {
    9: "Q8_1",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    21: "IQ3_S",
    22: "IQ2_S",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    29: "IQ1_M",
    34: "TQ1_0",
    35: "TQ2_0",
    40: "NVFP4",
}
"""The names of types that are not served, for messages."""
