"""Checkpoints of compressed-tensors (llm-compressor): each group of modules has a scheme. No torch is imported.

`config_groups` of config.json names the modules of each group (`targets`) and how their weights are stored. What the
files have decides whether a module is quantised at all; the list `ignore` decides only where there are no files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ember.engine.description.config import DecoderConfig
from ember.engine.description.fields import shown
from ember.engine.description.weights import Stored
from ember.engine.errors import ModelError
from ember.engine.quantization.base import FLOATS, Files
from ember.engine.quantization.compressed_int import UNUSED as INT_UNUSED
from ember.engine.quantization.compressed_int import ints_of
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

    def names(self, module: str) -> bool:
        """Whether the group has the module by name. A class such as Linear is no name."""
        return any(
            re.match(target[3:], module) is not None if target.startswith("re:") else _is_end(module, target)
            for target in self.targets
        )

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
    groups = _groups(fields)
    ignored = Ignored(fields.get("ignore"), "quantization_config.ignore")

    def scheme_of(stored: Stored) -> Scheme | None:
        if _is_plain(stored, files) if files else stored.name in ignored:
            return None
        return scheme_of_group(group_of(stored, groups), stored, files)

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


def group_of(stored: Stored, groups: list[Group]) -> Group:
    """The group that names the module, or else the first one that has all linear layers."""
    for group in groups:
        if group.names(stored.name):
            return group
    for group in groups:
        if "Linear" in group.targets:
            return group
    return groups[0]


def _groups(fields: Mapping[str, Any]) -> list[Group]:
    given = fields.get("config_groups")
    if not isinstance(given, dict) or not given:
        raise ModelError(f"quantization_config.config_groups is {shown(given)}: it must be an object of groups")
    groups = []
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
        for target in targets:
            _check_pattern(name, target)
        form = str(group.get("format") or fields.get("format") or "")
        groups.append(Group(name, tuple(targets), weights, inputs if isinstance(inputs, dict) else None, form))
    return groups


def _check_pattern(group: str, target: str) -> None:
    try:
        re.compile(target.removeprefix("re:") if target.startswith("re:") else "")
    except re.error as error:
        field = f"quantization_config.config_groups.{group}.targets"
        raise ModelError(f"{field} has {shown(target)}, which is no regular expression: {error}") from None


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
