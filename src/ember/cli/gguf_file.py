"""`ember quantize --format gguf-...`: a GGUF file of a checkpoint with plain weights.

Matrices are written in the type of the format. The embedding and the head are Q8_0 where the format has fewer bits.
Vectors and routers are F32, and so is what else llama.cpp reads as F32. Rows that are no whole blocks are F16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ember.cli.gguf_tokenizer import tokenizer_metadata
from ember.engine.description.config import DecoderConfig
from ember.engine.description.gguf.export import (
    Exported,
    architecture_of,
    check_equal,
    exported,
    metadata_of,
    rope_divisors,
)
from ember.engine.description.read_config import load_config
from ember.engine.errors import ModelError
from ember.engine.loading.safetensors_header import TensorEntry
from ember.engine.quantization.write_blocks import to_bytes
from ember.front.text.tokenizer import TokenizerError
from ember.gguf.header import GgufError
from ember.gguf.types import BY_NAME
from ember.gguf.write import FILE_TYPES, NewTensor, write_gguf

Read = Callable[[TensorEntry], torch.Tensor]
_HEADS = ("token_embd.weight", "output.weight")
_FEW_BITS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1")


def write_model(
    directory: Path,
    into: Path,
    type_name: str,
    config: DecoderConfig,
    entries: Mapping[str, TensorEntry],
    is_tied: bool,
    read: Read,
    say: Callable[[str], None],
) -> tuple[int, int]:
    """Write the file to the directory `into`. Returns the number of matrices of the type, and the bytes of all
    tensors. Raises ModelError."""
    name = directory.name if directory.name else "model"
    metadata: dict[str, Any] = {
        "general.architecture": architecture_of(config),
        "general.type": "model",
        "general.name": name,
        "general.file_type": FILE_TYPES[type_name],
        "general.quantization_version": 2,
        **metadata_of(config),
        **_tokenizer(directory, config, into, say),
    }
    tensors = [
        _tensor(each, _type(each, entries, type_name), config, entries, read)
        for each in exported(config, entries, is_tied)
    ]
    if (divisors := rope_divisors(config)) is not None:
        made = torch.tensor(divisors, dtype=torch.float32)
        tensors.append(NewTensor("rope_freqs.weight", "F32", (len(divisors),), lambda: [_data(made)]))
    file = into / f"{name}-{type_name}.gguf"
    nbytes = write_gguf(file, metadata, tensors)
    check_equal(config, load_config(file))
    say(f"wrote {file.name}")
    return sum(tensor.type == type_name for tensor in tensors), nbytes


def _tokenizer(directory: Path, config: DecoderConfig, scratch: Path, say: Callable[[str], None]) -> dict[str, Any]:
    if not (directory / "tokenizer.json").exists() and not (directory / "vocab.json").exists():
        say(f"{directory} has no tokenizer.json: the file has no tokenizer, and needs TOKENIZER_NAME to be served")
        return {}
    try:
        found = tokenizer_metadata(directory, config.vocab_size, scratch, say)
    except (TokenizerError, GgufError) as error:
        raise ModelError(str(error)) from None
    ends = [token_id for token_id in config.eos_token_ids if token_id != found.get("tokenizer.ggml.eos_token_id")]
    if "tokenizer.ggml.eos_token_id" not in found and ends:
        found["tokenizer.ggml.eos_token_id"] = ends.pop(0)
    if ends:
        found["tokenizer.ggml.eot_token_id"] = ends[0]
    return found


def _type(each: Exported, entries: Mapping[str, TensorEntry], type_name: str) -> str:
    shape = entries[each.sources[0]].shape
    if len(shape) < 2 or each.is_router or each.offset:
        return "F32"
    wanted = "Q8_0" if each.name in _HEADS and type_name in _FEW_BITS else type_name
    return wanted if shape[-1] % BY_NAME[wanted].elements == 0 else "F16"


def _tensor(
    each: Exported, type_name: str, config: DecoderConfig, entries: Mapping[str, TensorEntry], read: Read
) -> NewTensor:
    shape = entries[each.sources[0]].shape
    if config.names.transposed:
        raise ModelError(f"{config.architecture} stores matrices as [in, out], which cannot be written as a GGUF file")

    def pieces() -> Iterator[memoryview]:
        for source in each.sources:
            weight = read(entries[source]).float() + each.offset
            if each.heads:
                weight = weight.unflatten(0, (each.heads, 2, -1)).transpose(1, 2).flatten(0, 2)
            yield _data(to_bytes(weight.reshape(-1, shape[-1]), type_name))

    stack = (len(each.sources),) if len(each.sources) > 1 else ()
    return NewTensor(each.name, type_name, (*stack, *shape), pieces)


def _data(tensor: torch.Tensor) -> memoryview:
    return tensor.contiguous().view(torch.uint8).numpy().data.cast("B")
