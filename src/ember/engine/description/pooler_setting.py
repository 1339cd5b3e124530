"""The setting POOLER_CONFIG, whose fields are those of vLLM's PoolerConfig. This module does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ember.engine.description.fields import Fields, shown
from ember.engine.description.pooling import POOLING_TYPES, PoolingActivation, PoolingConfig, PoolingType, pooling_type
from ember.engine.errors import ModelError
from ember.wire import PoolingTask

_TOKEN_TYPES = ("all", "step")
_TASK_NAMES = ("task", "pooling_task", "pooling_target")  # its names in several versions of vLLM
_FIELDS = (
    *_TASK_NAMES,
    *("pooling_type", "seq_pooling_type", "tok_pooling_type", "normalize", "softmax", "activation", "use_activation"),
    *("dimensions", "logit_bias", "logit_mean", "logit_scale", "logit_sigma", "step_tag_id", "returned_token_ids"),
    *("enable_chunked_processing", "max_embed_len"),
)


class PoolerSetting:
    """What POOLER_CONFIG asks for."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        """Raises ModelError that names a field."""
        fields = Fields(values, "POOLER_CONFIG: ")
        if unknown := [name for name in values if name not in _FIELDS]:
            raise ModelError(f"POOLER_CONFIG: {shown(unknown[0])} is not a field of it: it has {', '.join(_FIELDS)}")
        found = [self._type(fields, name) for name in ("pooling_type", "seq_pooling_type")]
        self.types = tuple(dict.fromkeys(each for each in found if each is not None))[:1]
        token_type = (fields.text("tok_pooling_type") or "all").lower()
        if token_type not in _TOKEN_TYPES:
            raise fields.error("tok_pooling_type", "ALL or STEP")
        switches = [values[name] for name in ("use_activation", "normalize", "softmax", "activation") if name in values]
        for name in ("use_activation", "normalize", "softmax", "activation"):
            fields.flag(name, False)
        switches = [switch for switch in switches if switch is not None]
        if len(set(switches)) > 1:
            raise ModelError("POOLER_CONFIG: use_activation and its older names contradict each other: set one of them")
        self.use_activation: bool | None = switches[0] if switches else None
        self.dimensions = fields.optional_integer("dimensions", None)
        tasks = {text for name in _TASK_NAMES if (text := fields.text(name)) is not None}
        if len(tasks) > 1:
            raise ModelError(f"POOLER_CONFIG: {', '.join(_TASK_NAMES)} are names of one field: set one of them")
        self.task = next(iter(tasks), None)
        older, mean = (fields.optional_number(name, None) for name in ("logit_bias", "logit_mean"))
        if older is not None and mean is not None:
            raise ModelError("POOLER_CONFIG: logit_bias is the older name of logit_mean: set one of them")
        self.logit_mean = mean if mean is not None else older or 0.0
        scale, sigma = (fields.optional_number(name, None, above=0.0) for name in ("logit_scale", "logit_sigma"))
        if scale is not None and sigma is not None:
            raise ModelError("POOLER_CONFIG: logit_scale is the older name of 1 / logit_sigma: set one of them")
        self.logit_sigma = 1.0 / scale if scale is not None else sigma or 1.0
        if fields.flag("enable_chunked_processing", False):
            raise fields.error(
                "enable_chunked_processing", "false: a text longer than the context is not served in pieces"
            )
        if values.get("max_embed_len") is not None:
            raise fields.error("max_embed_len", "absent: it is the longest text of enable_chunked_processing")
        self.step_tag_id = None if values.get("step_tag_id") is None else fields.integer("step_tag_id", at_least=0)
        ids = values.get("returned_token_ids") or []
        if not isinstance(ids, list) or not all(type(item) is int and item >= 0 for item in ids):
            raise fields.error("returned_token_ids", "a list of numbers of columns, from 0 on")
        self.returned_token_ids = tuple(ids)

    def applied_to(self, config: PoolingConfig) -> PoolingConfig:
        """The configuration with the one task that POOLER_CONFIG names, and the activation that it turns on or off.
        Raises ModelError."""
        if self.task is not None:
            own: PoolingTask | None = next((task for task in config.tasks if task == self.task), None)
            if own is None:
                raise ModelError(
                    f"POOLER_CONFIG: task {shown(self.task)} is not one of the model's: {', '.join(config.tasks)}"
                )
            config = replace(config, only_task=own)
        if self.use_activation is None:
            return config
        on: PoolingActivation = config.activation
        if on == "none":
            on = "normalize" if config.convert == "embed" else "sigmoid" if len(config.labels) < 2 else "softmax"
        return replace(config, activation=on if self.use_activation else "none")

    @staticmethod
    def _type(fields: Fields, name: str) -> PoolingType | None:
        value = fields.text(name)
        if value is None or (value.lower() in _TOKEN_TYPES and name == "pooling_type"):
            return None
        kind = pooling_type(value)
        if kind is None:
            raise fields.error(name, f"one of {', '.join(POOLING_TYPES).upper()}")
        return kind
