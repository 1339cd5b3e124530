"""What the decoder needs to know about a model, and reading it from a Hugging Face directory. No torch here."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ember.engine.errors import ModelError
from ember.engine.layers.rope_config import RopeConfig

Norm = Literal["rms", "layer"]


@dataclass(frozen=True, slots=True)
class WeightNames:
    """The checkpoint's names. Layer names are relative to `layer` with the layer's number filled in; None = absent."""

    layer: str
    embed_tokens: str
    final_norm: str
    lm_head: str
    attention_norm: str
    mlp_norm: str
    query: str
    key: str
    value: str
    output: str
    up: str
    down: str
    gate: str | None = None
    query_norm: str | None = None
    key_norm: str | None = None
    embed_positions: str | None = None
    project_in: str | None = None
    project_out: str | None = None


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """A decoder-only model as data; every variation that `models.decoder` knows is a field."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int  # the longest context the model's positions reach, rope scaling included
    names: WeightNames
    norm: Norm = "rms"
    norm_eps: float = 1e-6
    norm_bias: bool = False
    norm_affine: bool = True
    norm_first: bool = True  # False: the norm follows the residual sum
    final_norm: bool = True
    activation: str = "silu"
    gated_mlp: bool = True
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    rope: RopeConfig | None = None
    position_offset: int | None = None  # learned positions, whose table begins with this many unused rows
    embed_dim: int | None = None  # width of the token embedding where it is projected to and from hidden_size
    sliding_windows: tuple[int | None, ...] = ()  # per layer, in tokens including the query's own
    tie_word_embeddings: bool = False
    dtype: str = "float32"  # of the checkpoint, by its config.json
    eos_token_ids: list[int] = field(default_factory=list)

    @property
    def query_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim

    def windows(self) -> tuple[int | None, ...]:
        """The sliding window of each layer (None: full attention)."""
        return self.sliding_windows or (None,) * self.num_layers


def load_config(model_dir: Path) -> DecoderConfig:
    """Read `config.json` (and the stop tokens of `generation_config.json`).

    Raises ModelError in one line: no or broken config.json, an architecture or a rope type we do not know, a missing
    or senseless field.
    """
    from ember.engine.models.families import FAMILIES, MODEL_TYPES

    raw = read_json(model_dir / "config.json", required=True)
    architectures = raw.get("architectures")
    architecture = architectures[0] if isinstance(architectures, list) and architectures else None
    if architecture is None:
        architecture = MODEL_TYPES.get(str(raw.get("model_type")))
    family = FAMILIES.get(str(architecture))
    if family is None:
        given = architecture or f"model_type {raw.get('model_type')!r}"
        raise ModelError(f"{model_dir}: architecture {given} is not supported; supported are {', '.join(FAMILIES)}")
    quantization = raw.get("quantization_config")
    if isinstance(quantization, dict):
        method = quantization.get("quant_method", "unknown")
        raise ModelError(f"{model_dir}: {method} quantized weights are not supported; use the unquantized model")
    try:
        config = family(raw)
    except ModelError as error:
        raise ModelError(f"{model_dir / 'config.json'}: {error}") from None
    generation = read_json(model_dir / "generation_config.json", required=False)
    return replace(
        config,
        architecture=str(architecture),
        dtype=str(raw.get("dtype") or raw.get("torch_dtype") or "float32").removeprefix("torch."),
        eos_token_ids=_eos_token_ids(raw, generation, config.vocab_size),
    )


def read_json(path: Path, *, required: bool) -> dict[str, Any]:
    """A JSON object from a file; {} where it is absent and not required. Raises ModelError."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        if not required:
            return {}
        raise ModelError(f"{path} does not exist: {path.parent} is not a model directory") from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON ({error}): download the file again") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path} is not a JSON object: download the file again")
    return value


def _eos_token_ids(raw: dict[str, Any], generation: dict[str, Any], vocab_size: int) -> list[int]:
    """The end tokens of both files, each once; ids that the model has no logits for are left out."""
    ids = _token_ids(raw.get("eos_token_id")) + _token_ids(generation.get("eos_token_id"))
    return [token_id for token_id in dict.fromkeys(ids) if 0 <= token_id < vocab_size]


def _token_ids(value: Any) -> list[int]:
    items = value if isinstance(value, list) else [value]
    return [item for item in items if isinstance(item, int) and not isinstance(item, bool)]
