"""AutoRound's checkpoints: GPTQ's or AWQ's tensors under names of its own in config.json. No torch is imported."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ember.engine.description.config import DecoderConfig
from ember.engine.description.fields import Fields, shown
from ember.engine.description.weights import Stored
from ember.engine.errors import ModelError
from ember.engine.quantization.awq import AWQScheme
from ember.engine.quantization.awq import check_bits as check_awq_bits
from ember.engine.quantization.base import Files
from ember.engine.quantization.expressions import Expression, Expressions
from ember.engine.quantization.gptq import UNUSED, GPTQScheme, found_in, read_bits
from ember.engine.quantization.mixed import Mixed, Scheme
from ember.engine.quantization.packed import FIELDS, is_plain_in, read_group, scale_dtype

# Values of packing_format -> what is to be added to stored zero points; None: packed as AWQ.
PACKINGS = {"auto_round:auto_gptq": 1, "auto_round:gptqmodel": 0, "auto_round": 0, "auto_round:auto_awq": None}
_OLD_PACKINGS = {"auto_round:gptq": "auto_round:auto_gptq", "auto_round:awq": "auto_round:auto_awq"}


class AutoRound(Mixed):
    """The format of `quant_method` auto-round."""

    def __init__(self, config: DecoderConfig, files: Files) -> None:
        fields = Fields(config.quantization or {}, FIELDS)
        packing = fields.text("packing_format", "auto_round:auto_gptq") or ""
        packing = _OLD_PACKINGS.get(packing, packing)
        if packing not in PACKINGS:
            raise fields.error("packing_format", f"one of {', '.join(PACKINGS)}: no other is supported")
        self._files, self._head = files, config.names.lm_head
        self._fields, self._zero_offset = fields, PACKINGS[packing]
        self._base = self._scheme_from(fields)
        self._expressions = Expressions(f"{FIELDS}extra_config")
        self._overrides = [self._override(name, value) for name, value in fields.mapping("extra_config").items()]
        super().__init__("auto-round", self._scheme_for, UNUSED)

    def _scheme_for(self, stored: Stored) -> Scheme | None:
        name, files = stored.name, self._files
        if is_plain_in(files, stored):
            return None
        scheme, is_named = self._base, False
        for pattern, overriding in self._overrides:
            if pattern.search(name):
                scheme, is_named = overriding, True
                break
        if f"{name}.qweight" not in files and (scheme is None or (name == self._head and not is_named)):
            return None
        if isinstance(scheme, AWQScheme):
            return replace(scheme, scales=scale_dtype(files, f"{name}.scales"))
        return None if scheme is None else found_in(files, name, scheme)

    def _scheme_from(self, fields: Fields) -> AWQScheme | GPTQScheme | None:
        """The scheme of some modules; None: they are plain."""
        if fields.integer("bits") >= 16:
            return None
        if fields.text("data_type", "int") != "int":
            raise fields.error("data_type", "int: other numbers are not supported in this format")
        group = read_group(fields)
        if self._zero_offset is None:
            check_awq_bits(fields)
            return AWQScheme(group)
        return GPTQScheme(read_bits(fields), group, has_order=False, zero_offset=self._zero_offset)

    def _override(self, name: str, value: Any) -> tuple[Expression, AWQScheme | GPTQScheme | None]:
        """An entry of `extra_config`: the name of a module, or an expression."""
        where = self._expressions.field
        if not isinstance(value, Mapping):
            raise ModelError(f"{where} has {shown(value)} for {shown(name)}: it must be an object")
        pattern = self._expressions.compile(f"^{re.escape(name)}$" if re.fullmatch(r"[\w.]+", name) else name, name)
        base = {
            field: self._fields.values[field]
            for field in ("bits", "group_size", "data_type")
            if field in self._fields.values
        }
        return pattern, self._scheme_from(Fields({**base, **value}, f"{where}."))
