"""The names of the layouts of weights, as the operator sets declare them. This module does not import torch.

A layout's name is that of its class in `layers`. Kernels take most sizes of a layout but not all. A weight with other
sizes has a longer name, which no set declares, so torch restores it.
"""

from __future__ import annotations

ORDERED_INTEGERS = "IntLinear with ordered inputs"  # act-order
SMALL_TABLES = "TableLinear in small blocks"

_GROUP = 32  # inputs: what groups of integers and blocks of float8 must be divisible by
_ROW = 16  # inputs: the same of rows


def integers(group: int, is_ordered: bool) -> str:
    """The name of an `IntLinear` in a report. `group`: inputs of a scale."""
    if group % _GROUP:
        return f"IntLinear in groups of {group}"
    return ORDERED_INTEGERS if is_ordered else "IntLinear"


def float8(inputs: int, block: int) -> str:
    """The name of a `Float8Linear` in a report. `block`: inputs of a scale."""
    if inputs % _ROW:
        return f"Float8Linear in rows of {inputs}"
    return "Float8Linear" if block >= inputs or block % _GROUP == 0 else f"Float8Linear in blocks of {block}"


def table(inputs: int, block: int) -> str:
    """Of `TableLinear`. `block`: inputs of a scale."""
    if inputs % _ROW:
        return f"TableLinear in rows of {inputs}"
    if block % 2:
        return f"TableLinear in blocks of {block}"
    return "TableLinear" if block == _ROW or block % _GROUP == 0 or block >= inputs else SMALL_TABLES
