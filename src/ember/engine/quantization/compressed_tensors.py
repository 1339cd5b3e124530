"""Checkpoints of compressed-tensors (llm-compressor): each group of modules has a scheme. No torch is imported.

`config_groups` of config.json names the modules of each group (`targets`) and how their weights are stored. What the
files have decides whether a module is quantised at all; the list `ignore` decides only where there are no files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ember.engine.description.config import DecoderConfig
from ember.engine.description.fields import shown
from ember.engine.description.weights import Stored
from ember.engine.errors import ModelError
from ember.engine.quantization.base import FLOATS, Files
from ember.engine.quantization.compressed_int import UNUSED as INT_UNUSED
from ember.engine.quantization.compressed_int import ints_of
from ember.engine.quantization.expressions import Expression, Expressions
from ember.engine.quantization.float8 import UNUSED, float8_of
from ember.engine.quantization.fp4 import Fp4
from ember.engine.quantization.ignored import Ignored
from ember.engine.quantization.mixed import Mixed, Scheme

PACKED = ".weight_packed"
_UNUSED = (".input_global_scale", ".weight_zero_point")
_SPARSE = ("dense", None)  # values of sparsity_config.format without sparsity


@dataclass(frozen=True, slots=True)
class Group:
    """One of `config_groups`."""

    name: str
    targets: tuple[str, ...]
    weights: Mapping[str, Any]  # its arguments: num_bits, type, strategy, ...
    inputs: Mapping[str, Any] | None  # the same of activations; None: they are not quantised
    form: str = ""  # the `format` of the group, or of all
    expressions: Mapping[str, Expression] = field(default_factory=dict)  # by their targets, which begin with "re:"

    def names(self, module: str) -> bool:
        """Whether a target is the module's name, or its end. A class such as Linear is no name."""
        return any(_is_end(module, target) for target in self.targets if target not in self.expressions)

    @property
    def has_all(self) -> bool:
        """Whether the group has all linear layers, by their class."""
        return "Linear" in self.targets

    @property
    def says(self) -> str:
        weights = {name: value for name, value in self.weights.items() if value is not None}
        return f"quantization_config.config_groups.{self.name}.weights {shown(weights)}"


def compressed_tensors(config: DecoderConfig, files: Files) -> Mixed:
    """`quant_method` compressed-tensors. Raises ModelError."""
    fields = config.quantization or {}
    sparsity = fields.get("sparsity_config") or {}
    if not isinstance(sparsity, dict) or sparsity.get("format") not in _SPARSE:
        raise ModelError(f"quantization_config.sparsity_config is {shown(sparsity)}: its format must be dense")
    transforms = fields.get("transform_config")
    if transforms and not (isinstance(transforms, dict) and not transforms.get("config_groups")):
        raise ModelError(f"quantization_config.transform_config is {shown(transforms)}: transforms are not supported")
    groups = read_groups(fields)
    ignored = Ignored(fields.get("ignore"), "quantization_config.ignore")

    def scheme_of(stored: Stored) -> Scheme | None:
        if _is_plain(stored, files) if files else stored.name in ignored:
            return None
        group = group_of(stored.name, groups)
        if group is None and not any(stored.name + suffix in files for suffix in (stored.suffix, PACKED)):
            return None
        if group is None:
            raise ModelError(
                f"the weight of {stored.name} is quantized, but no group of quantization_config.config_groups has it "
                f"among its targets: {shown([target for each in groups for target in each.targets])}"
            )
        return scheme_of_group(group, stored, files)

    return Mixed("compressed-tensors", scheme_of, (*UNUSED, *INT_UNUSED, *_UNUSED))


def scheme_of_group(group: Group, stored: Stored, files: Files) -> Scheme:
    """How a matrix of the group is stored. Raises ModelError."""
    weights = group.weights
    kind = weights.get("type", "int"), weights.get("num_bits", 8)
    strategy, size = weights.get("strategy"), weights.get("group_size")
    if kind[0] == "float" and not weights.get("symmetric", True):
        raise ModelError(f"{group.says} are floats with zero points, which are not supported")
    if kind == ("float", 8) and strategy in (None, "tensor", "channel", "block"):
        shape = weights.get("block_structure") if strategy == "block" else None
        blocks = _block_structure(group, shape) if strategy == "block" else None
        rounds = group.inputs is not None and group.inputs.get("num_bits") == 8
        return float8_of(stored, files, blocks, by_row=strategy == "channel", quantises_inputs=rounds)
    if kind == ("float", 4) and size == 16:
        return Fp4("nvfp4", PACKED, ".weight_scale", ".weight_global_scale", is_inverse=True, files=files)
    if kind == ("float", 4) and size == 32:
        return Fp4("mxfp4", PACKED, ".weight_scale", files=files)
    if kind[0] == "int":
        return ints_of(group.says, stored, files, weights, group.form)
    raise ModelError(
        f"{group.says} are not supported: they may be integers, floats of 8 bits with scales of the tensor, channels "
        "or blocks, or floats of 4 bits in groups of 16 (nvfp4) or 32 (mxfp4)"
    )


def group_of(module: str, groups: list[Group]) -> Group | None:
    """The group of a module, as compressed-tensors finds it; None: it is not quantised. A target that is its name
    precedes regular expressions, the first of which in alphabetical order counts, and these precede its class."""
    for group in groups:
        if group.names(module):
            return group
    found = [(target, group) for group in groups for target, each in group.expressions.items() if each.match(module)]
    if found:
        return min(found, key=lambda item: item[0])[1]
    return next((group for group in reversed(groups) if group.has_all), None)


def read_groups(fields: Mapping[str, Any]) -> list[Group]:
    """The groups of `config_groups`. Raises ModelError."""
    given = fields.get("config_groups")
    if not isinstance(given, dict) or not given:
        raise ModelError(f"quantization_config.config_groups is {shown(given)}: it must be an object of groups")
    groups = []
    expressions = Expressions("quantization_config.config_groups")
    for name, group in given.items():
        weights = group.get("weights") if isinstance(group, dict) else None
        targets = group.get("targets") if isinstance(group, dict) else None
        if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
            raise ModelError(f"quantization_config.config_groups.{name}.targets is {shown(targets)}: it must be names")
        if not isinstance(weights, dict):
            raise ModelError(
                f"quantization_config.config_groups.{name}.weights is {shown(weights)}: it must be an object"
            )
        inputs = group.get("input_activations")
        expressions.field = f"quantization_config.config_groups.{name}.targets"
        patterns = {each: expressions.compile(each[3:], each) for each in targets if each.startswith("re:")}
        form = str(group.get("format") or fields.get("format") or "")
        groups.append(
            Group(name, tuple(targets), weights, inputs if isinstance(inputs, dict) else None, form, patterns)
        )
    return groups


def _block_structure(group: Group, shape: Any) -> tuple[int, int]:
    if isinstance(shape, str) and re.fullmatch(r"\d+x\d+", shape):  # as older versions wrote it
        shape = [int(part) for part in shape.split("x")]
    if isinstance(shape, list | tuple) and len(shape) == 2 and all(type(part) is int and part > 0 for part in shape):
        return shape[0], shape[1]
    raise ModelError(f"{group.says} have the block_structure {shown(shape)}: it must be two positive numbers")


def _is_plain(stored: Stored, files: Files) -> bool:
    entry = files.get(stored.name + stored.suffix)
    return entry is not None and entry.dtype in FLOATS


def _is_end(module: str, target: str) -> bool:
    return module == target or module.endswith(f".{target}")
