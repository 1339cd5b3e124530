"""A model of transformers as the engine's model: its modelling code over the paged cache."""

from __future__ import annotations

import copy
import inspect
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ember.engine.description.cache_groups import CacheGroup, cache_groups, cache_places
from ember.engine.description.config import DecoderConfig
from ember.engine.errors import ModelError
from ember.engine.fallback.guard import no_exit
from ember.engine.fallback.paged import Call, PagedAttention, Place
from ember.engine.layers.batch import Batch
from ember.engine.layers.cache import KVCache
from ember.engine.operators.torch_plan import GroupShape


class ForeignModel:
    """A causal language model of transformers, whose attention is `attention`.

    The engine's steps are one sequence of tokens for it, [1, T], with their positions. What mixes tokens is attention
    alone (`fallback.trial` tries it).
    """

    def __init__(
        self, lm: Any, attention: PagedAttention, config: DecoderConfig, max_model_len: int | None = None
    ) -> None:
        """`config`: what config.json says without transformers, which the model's own values replace."""
        self.lm, self.attention = lm, attention
        self.base = _base_model(lm)
        self._head = _head_of(lm, self.base)
        parameters = {id(each): each for each in lm.parameters()}.values()
        self.num_parameters = sum(each.numel() for each in parameters)
        self.weight_bytes = sum(each.nbytes for each in parameters)
        self.dtype, self.device = lm.dtype, lm.device
        own = lm.config.get_text_config()
        embedding = lm.get_input_embeddings().weight
        self.config = replace(
            config,
            vocab_size=min(int(own.vocab_size), embedding.shape[0]),
            hidden_size=int(getattr(own, "hidden_size", 0) or embedding.shape[1]),
            max_position_embeddings=_max_positions(own, config, max_model_len),
        )
        self.config = with_calls(self.config, self._record())
        self.groups = cache_groups(self.config, self.dtype.itemsize)
        self._place(self.groups)

    @property
    def name(self) -> str:
        return type(self.lm).__name__

    def forward(self, batch: Batch, cache: KVCache) -> Tensor:
        """Run one step: K and V of the batch are written to the cache. Returns [T, hidden] after the final norm."""
        with self.attention.step(batch, cache):
            return self._hidden(batch.token_ids, batch.positions)

    def logits(self, hidden: Tensor) -> Tensor:
        """[R, hidden] -> [R, vocab_size] by the model's own head, with what it does to the logits."""
        with no_exit():
            logits: Tensor = self._head(inputs_embeds=hidden[None], use_cache=False).logits[0]
        return logits[:, : self.config.vocab_size]

    def _hidden(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        with no_exit():
            output = self.base(input_ids=token_ids[None], position_ids=positions[None], use_cache=False)
        hidden: Tensor = output[0]
        return hidden[0]

    @torch.inference_mode()
    def _record(self) -> list[Call]:
        """The calls of the attention function in a forward pass. Raises ModelError."""
        tokens = torch.arange(1, 6, device=self.device)
        self.lm.set_attn_implementation(self.attention.name_with_masks)
        try:
            with self.attention.recording() as calls:
                self._hidden(tokens, tokens - 1)
        except ModelError:
            raise
        except Exception as error:  # code of any model
            raise ModelError(
                f"it computes with masks in a way of its own ({type(error).__name__}: {_first_line(error)})"
            ) from error
        finally:
            self.lm.set_attn_implementation(self.attention.name)
        return calls

    def _place(self, groups: tuple[CacheGroup, ...]) -> None:
        """Give the attention function the places of its calls in the cache."""
        config, attention = self.config, self.attention
        places = cache_places(config, groups)
        attention.places = [
            Place(*places[layer], config.heads(layer).head_dim, config.has_own_kv(layer))
            for layer in range(config.num_layers)
        ]
        attention.shapes = [
            GroupShape(each.window, each.places[0].kv_heads, each.places[0].head_dim) for each in groups
        ]
        attention.has_scores = config.attention_sinks
        attention.window_is_chunk = config.window_is_chunk


class _Given(nn.Module):
    """Stands in the place of the base model of a causal language model, and gives it hidden states."""

    def forward(self, *args: Any, inputs_embeds: Tensor, **kwargs: Any) -> Any:
        from transformers.modeling_outputs import MoeModelOutputWithPast  # has the fields of the others, too

        return MoeModelOutputWithPast(last_hidden_state=inputs_embeds)


def _base_model(lm: Any) -> Any:
    """The model without its head. Raises ModelError."""
    named = (lm.base_model, lm.get_decoder(), getattr(lm, "model", None))
    base = next((each for each in named if any(child is each for child in lm.children())), None)
    if base is None:
        raise ModelError("its class has no base model beside a head")
    parameters = inspect.signature(base.forward).parameters
    takes_all = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())
    if "position_ids" not in parameters and not takes_all:
        raise ModelError("it takes no position_ids, which tell the positions of a batch of many sequences")
    return base


def _head_of(lm: Any, base: Any) -> Any:
    """A shallow copy of the language model that computes logits from hidden states."""
    head = copy.copy(lm)
    head._modules = {name: _Given() if child is base else child for name, child in lm._modules.items()}
    return head


def _max_positions(own: Any, config: DecoderConfig, max_model_len: int | None) -> int:
    """The longest context. Raises ModelError if neither transformers' configuration nor config.json tells it, or if the
    longest sequence of a batch would change what the others compute."""
    found = getattr(own, "max_position_embeddings", None) or config.max_position_embeddings
    if type(found) is not int or found < 1:
        raise ModelError("its configuration has no max_position_embeddings: add it with HF_OVERRIDES")
    ropes = getattr(own, "rope_parameters", None) or {}
    for rope in (ropes, *ropes.values()):  # one for all layers, or one for each type of layers
        kind = rope.get("rope_type") if isinstance(rope, dict) else None
        if kind not in ("dynamic", "longrope"):
            continue
        limit = int(rope.get("original_max_position_embeddings") or found)
        if (max_model_len or found) > limit:
            raise ModelError(
                f"its rope type {kind} depends on the longest sequence of a batch: set MAX_MODEL_LEN to at most {limit}"
            )
        found = min(found, limit)
    return found


def with_calls(config: DecoderConfig, calls: list[Call]) -> DecoderConfig:
    """The configuration with a layer of the cache for every call of attention. Raises ModelError for calls that the
    cache has no form for."""
    if len(calls) < config.num_layers:
        missing = config.num_layers - len(calls)
        raise ModelError(
            f"{missing} of its {config.num_layers} layers do not call transformers' attention interface: they have a "
            "state or an attention of their own"
        )
    windows = {call.mask for call in calls if call.mask.window is not None}
    if len(windows) > 1:
        sizes = ", ".join(str(mask.window) for mask in sorted(windows))
        raise ModelError(f"its layers have sliding windows of several lengths ({sizes})")
    window = next(iter(windows), None)
    heads = max(call.heads for call in calls)
    described = replace(
        config,
        num_layers=len(calls),
        num_heads=heads,
        num_kv_heads=calls[0].kv_heads,
        head_dim=calls[0].head_dim,
        layer_kv_heads=tuple(call.kv_heads for call in calls),
        layer_head_dims=tuple(call.head_dim for call in calls),
        sliding_window=None if window is None else window.window,
        window_is_chunk=window is not None and window.is_chunk,
        windowed_layers=tuple(call.mask.window is not None for call in calls),
        attention_sinks=any(call.has_scores for call in calls),
    )
    shared = sum(call.source != number for number, call in enumerate(calls))
    sharing = replace(described, shared_kv_layers=shared)
    if shared and list(sharing.kv_sources()) == [call.source for call in calls]:
        return sharing
    return described


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
