"""The fields of config.json about Mamba 2. This module does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from types import MappingProxyType

from ember.engine.description.family import field_names
from ember.engine.description.fields import Fields
from ember.engine.description.mixers import SsdConfig, SsdNames
from ember.engine.errors import ModelError

SSD_FIELDS = field_names(
    "mamba_n_heads mamba_n_groups mamba_d_state mamba_d_head mamba_d_conv mamba_expand mamba_conv_bias mamba_proj_bias "
    "time_step_limit"
)
HARMLESS = field_names("mamba_chunk_size")  # how the same is computed


def ssd_names(module: str) -> SsdNames:
    """The names of a module's weights."""
    return SsdNames(
        inputs=f"{module}.in_proj",
        conv=f"{module}.conv1d",
        dt_bias=f"{module}.dt_bias",
        decay=f"{module}.A_log",
        skip=f"{module}.D",
        norm=f"{module}.norm",
        output=f"{module}.out_proj",
    )


def read_ssd(
    fields: Fields,
    hidden_size: int,
    names: Mapping[str, str] = MappingProxyType({}),
    limits: tuple[float, float] | None = None,
    inner: tuple[str, int] | None = None,
    **defaults: int | bool,
) -> SsdConfig:
    """Read the fields in `SSD_FIELDS` and `hidden_act`, for which `names` may have other names and `defaults` other
    defaults. Without a default of the heads' size, the heads are `mamba_expand` times as large as the hidden states.
    `limits`: of dt, in place of `time_step_limit`. `inner`: the field that has the size of all heads, unless it is
    null, and its default. Raises ModelError."""

    def name(field: str) -> str:
        return names.get(field, field)

    def integer(field: str, default: int) -> int:
        return fields.integer(name(field), int(defaults.get(field, default)))

    heads, groups = integer("mamba_n_heads", 128), integer("mamba_n_groups", 1)
    head_name = name("mamba_d_head")
    if "mamba_d_head" in defaults:
        head_dim = integer("mamba_d_head", 64)
    else:
        expand = integer("mamba_expand", 2)
        total, says = expand * hidden_size, f"{name('mamba_expand')}={expand} times hidden_size={hidden_size}"
        given = None if inner is None else fields.optional_integer(*inner)
        if inner is not None and given is None:
            says = f"{says} where {inner[0]} is null"
        elif inner is not None and given is not None:
            total, says = given, f"{inner[0]}={given}"
        head_dim = max(total // heads, 1)
        if fields.values.get(head_name) not in (None, "auto"):
            head_dim = fields.integer(head_name)
        if heads * head_dim != total:
            raise ModelError(f"{name('mamba_n_heads')}={heads} of {head_name}={head_dim} must be {says}")
    if heads % groups:
        raise ModelError(f"{name('mamba_n_heads')}={heads} must be a multiple of {name('mamba_n_groups')}={groups}")
    fields.one_of(name("hidden_act"), "silu", ("silu",))  # that of the convolution
    least, most = _limits(fields) if limits is None else limits
    bias = fields.flag(name("mamba_proj_bias"), bool(defaults.get("mamba_proj_bias", False)))
    return SsdConfig(
        heads=heads,
        head_dim=head_dim,
        groups=groups,
        state_dim=integer("mamba_d_state", 256),
        kernel=integer("mamba_d_conv", 4),
        conv_bias=fields.flag(name("mamba_conv_bias"), bool(defaults.get("mamba_conv_bias", True))),
        bias=bias,
        output_bias=bias,
        least_dt=least,
        most_dt=most,
    )


def _limits(fields: Fields) -> tuple[float, float]:
    """`time_step_limit`: two numbers, of which the second may be infinite."""
    given = fields.values.get("time_step_limit")
    if given is None:
        return 0.0, inf
    wanted = "two numbers, the smaller one first"
    if not isinstance(given, list | tuple) or len(given) != 2:
        raise fields.error("time_step_limit", wanted)
    found: list[float] = []
    for each in given:
        value = each.get("__float__") if isinstance(each, dict) else each
        value = inf if value in ("Infinity", "inf") else value
        if type(value) not in (int, float):
            raise fields.error("time_step_limit", wanted)
        found.append(float(value))  # type: ignore[arg-type]
    if not found[0] <= found[1]:
        raise fields.error("time_step_limit", wanted)
    return found[0], found[1]
