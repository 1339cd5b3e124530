"""The counts of a config.json compared with what the files hold, before anything of their size is made. No torch here.

A wrong count would otherwise show as a tensor of another shape than expected, or as memory that is eaten for layers
that no file has. What is wrong is one line: the field, its value, and what the files have.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ember.engine.description.config import DecoderConfig
from ember.engine.errors import ModelError
from ember.engine.loading.safetensors_header import TensorEntry


def check_counts(config: DecoderConfig, entries: Mapping[str, TensorEntry], strip: bool) -> None:
    """Raises ModelError. `strip`: the names in the files lack the prefix "model."."""
    names = config.names
    wrong = _wrong_layers(names.layer.removeprefix("model.") if strip else names.layer, config.num_layers, entries)
    embed_field = "hidden_size" if config.embed_dim is None else "word_embed_proj_dim"
    hidden = ("hidden_size", config.hidden_size)
    head_dim = f"of head_dim={config.head_dim}"
    first = names.layer.format(0)
    expected = [
        (names.embed_tokens, ("vocab_size", config.vocab_size), (embed_field, config.embed_dim or config.hidden_size)),
        (first + names.query, (f"num_attention_heads={config.num_heads} {head_dim}", config.query_size), hidden),
        (first + names.key, (f"num_key_value_heads={config.num_kv_heads} {head_dim}", config.kv_size), hidden),
        (first + names.up, (config.intermediate_field, config.intermediate_size), hidden),
    ]
    if config.position_offset is not None:
        rows = config.max_position_embeddings + config.position_offset
        expected.append((str(names.embed_positions), ("max_position_embeddings and its offset", rows), hidden))
    for source, *sizes in expected:
        entry = entries.get(f"{source.removeprefix('model.') if strip else source}.weight")
        if entry is None or len(entry.shape) != 2:  # which the plan reports
            continue
        for (field, value), found, kind in zip(sizes, entry.shape, ("rows", "columns"), strict=True):
            if value != found:
                says = f"{field}: {value}" if "=" in field or " " in field else f"{field}={value}"
                wrong.append(f"{says}, but {entry.name} has {found} {kind}")
    if wrong:
        raise ModelError(f"config.json does not fit the weight files: {'; '.join(wrong[:3])}")


def _wrong_layers(layer: str, num_layers: int, entries: Mapping[str, TensorEntry]) -> list[str]:
    """Says what is wrong with the number of layers, which the files tell by the numbers in their tensors' names."""
    pattern = re.compile(re.escape(layer).replace(re.escape("{}"), "([0-9]{1,9})", 1))
    numbers = {int(found[1]) for name in entries if (found := pattern.match(name))}
    last = max(numbers, default=-1)
    if numbers and num_layers != last + 1:
        return [f"num_hidden_layers={num_layers}, but the files have {last + 1} layers, to {layer.format(last)[:-1]}"]
    if len(numbers) < num_layers:
        missing = next(number for number in range(num_layers) if number not in numbers)
        return [f"num_hidden_layers={num_layers}, but the files lack {layer.format(missing)[:-1]}"]
    return []
