"""Models of classes that Ember has no family for, which transformers runs over Ember's paged attention.

Neither torch nor transformers is imported here, since importing transformers takes seconds: what it has is read in its
source files. The sizes are what config.json says. transformers' own configuration replaces them at boot.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ember.engine.description.config import DecoderConfig
from ember.engine.description.fields import Fields, shown
from ember.engine.description.weight_names import WeightNames
from ember.engine.errors import ModelError

EXTRA = "worker-ember[transformers]"
_NO_NAMES = WeightNames("", "", "", "", "", None, "")  # transformers knows the weights
_SIZES = {  # of a DecoderConfig -> the names of the field in config.json, the most common one first
    "hidden_size": ("hidden_size", "d_model", "n_embd", "dim"),
    "num_layers": ("num_hidden_layers", "n_layers", "n_layer", "num_layers"),
    "num_heads": ("num_attention_heads", "n_heads", "n_head"),
    "num_kv_heads": ("num_key_value_heads", "n_kv_heads", "multi_query_group_num"),
    "head_dim": ("head_dim", "attention_head_dim", "kv_channels"),
    "intermediate_size": ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size"),
    "max_position_embeddings": ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "seq_length"),
    "vocab_size": ("vocab_size",),
}


@dataclass(frozen=True, slots=True)
class ForeignClass:
    """A class of causal language models that is not Ember's."""

    name: str
    is_remote: bool = False  # its code is beside the weights, not in transformers
    shell: str | None = None  # the multimodal class of the checkpoint, of which it is the language model


def find_class(fields: Fields, architecture: str | None, trust_remote_code: bool, unknown: str) -> ForeignClass:
    """The class that runs the model of a config.json. `architecture`: the class that it names, or that belongs to its
    model type. `unknown`: the beginning of the message where nothing runs it. Raises ModelError."""
    code = fields.mapping("auto_map")
    has_code = isinstance(code.get("AutoModelForCausalLM"), str) and isinstance(code.get("AutoConfig"), str)
    source = _source_directory()
    if source is None:
        raise ModelError(f"{unknown}; transformers, which may run it, is not installed: pip install '{EXTRA}'")
    known = _causal_classes(source)
    inner = known.get(str(fields.mapping("text_config").get("model_type")))
    if architecture is not None and inner is not None and inner != architecture:
        _check_source(source, inner, [kind for kind, each in known.items() if each == inner])
        return ForeignClass(inner, shell=architecture)
    name = architecture or known.get(fields.text("model_type", "") or "")
    if name in known.values() and name is not None:
        _check_source(source, name, [kind for kind, each in known.items() if each == name])
        return ForeignClass(name)
    if not has_code:
        why = "transformers has no causal language model of this name either"
        if fields.mapping("text_config"):
            why = "this one is multimodal, and transformers has no language model of the type in its text_config"
        raise ModelError(f"{unknown}; {why}")
    if not trust_remote_code:
        raise ModelError(
            f"{unknown}; its config.json names code in the model's repository ({shown(code['AutoModelForCausalLM'])}), "
            "which runs with TRUST_REMOTE_CODE=true alone: set it if you trust the repository"
        )
    if any("--" in str(code[each]) for each in ("AutoConfig", "AutoModelForCausalLM")):
        raise ModelError(
            f"{unknown}; its config.json names code in another repository ({shown(code['AutoModelForCausalLM'])}), of "
            "which no setting tells the commit: put the files beside config.json, and name them without the repository"
        )
    return ForeignClass(name or str(code["AutoModelForCausalLM"]).rpartition(".")[2], is_remote=True)


def read_foreign(fields: Fields, found: ForeignClass) -> DecoderConfig:
    """What config.json says about the sizes of such a model; 0 where it does not say it. Raises ModelError for a model
    that transformers cannot run over Ember's cache."""
    if fields.flag("is_encoder_decoder", False):
        raise ModelError(f"{found.shell or found.name} is an encoder and a decoder, and decoders alone are served")
    if found.shell is not None:
        fields = Fields(text_values(fields.values))
    sizes: dict[str, Any] = {name: _size(fields, names) for name, names in _SIZES.items()}
    sizes["num_kv_heads"] = sizes["num_kv_heads"] or sizes["num_heads"]
    if not sizes["head_dim"] and sizes["num_heads"]:
        sizes["head_dim"] = sizes["hidden_size"] // sizes["num_heads"]
    sizes["intermediate_size"] = sizes["intermediate_size"] or 4 * sizes["hidden_size"]
    window = fields.values.get("sliding_window")
    types = fields.values.get("layer_types")
    windowed: tuple[bool, ...] = ()
    if isinstance(types, list) and len(types) == sizes["num_layers"]:
        windowed = tuple("sliding" in str(kind) or "chunked" in str(kind) for kind in types)
    return DecoderConfig(
        architecture=found.shell or found.name,
        text_architecture=found.name,
        is_shell=found.shell is not None,
        names=_NO_NAMES,
        through_transformers=True,
        sliding_window=window if type(window) is int and window > 0 and any(windowed) else None,
        windowed_layers=windowed,
        **sizes,
    )


def text_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a multimodal checkpoint's language model, whose weights may be tied outside of `text_config`."""
    own = dict(values["text_config"])
    for name in ("tie_word_embeddings", "eos_token_id"):
        if own.get(name) is None and values.get(name) is not None:
            own[name] = values[name]
    return own


def has_sizes(config: DecoderConfig) -> bool:
    """Whether config.json said all that the size of the cache depends on."""
    return 0 not in (config.num_layers, config.num_heads, config.head_dim, config.max_position_embeddings)


def _size(fields: Fields, names: tuple[str, ...]) -> int:
    values = (fields.values.get(name) for name in names)
    return next((value for value in values if type(value) is int and 0 < value < 2**31), 0)


@cache
def _source_directory() -> Path | None:
    """The directory of transformers; None if it is not installed."""
    spec = find_spec("transformers")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


@cache
def _causal_classes(source: Path) -> dict[str, str]:
    """transformers' `model_type` -> its class of causal language models, of all that it has."""
    try:
        text = (source / "models/auto/modeling_auto.py").read_text()
    except OSError:
        return {}
    table = re.search(r"^MODEL_FOR_CAUSAL_LM_MAPPING_NAMES\b.*?^\)", text, re.MULTILINE | re.DOTALL)
    return dict(re.findall(r'\(\s*"([^"]+)",\s*"([^"]+)"', table[0])) if table else {}


def _check_source(source: Path, name: str, kinds: list[str]) -> None:
    """Raise ModelError for a class whose code says that it cannot run over Ember's cache. `kinds`: its model types.
    What cannot be read is decided when the class is imported."""
    names = (kind.replace("-", "_") for kind in kinds)
    for folder in dict.fromkeys(each for kind in names for each in (kind, kind.removesuffix("_text"))):
        try:
            text = (source / "models" / folder / f"modeling_{folder}.py").read_text()
        except OSError:
            continue
        if f"class {name}(" not in text:
            continue
        reason = None
        if "_is_stateful = True" in text:
            reason = "it has a recurrent state of its own beside the KV cache"
        elif "_supports_attention_backend = True" not in text and "ALL_ATTENTION_FUNCTIONS" not in text:
            reason = "its attention does not go through transformers' attention interface"
        if reason is not None:
            raise ModelError(f"{name} is not of Ember's families and cannot be served through transformers: {reason}")
        return
