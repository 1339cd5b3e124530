"""llama.cpp on the same weights: a GGUF file, or one written from the checkpoint. Batches are decoded by its C API."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
from timing import measure, request

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def to_gguf(directory: Path) -> Path:
    """Write the bf16 checkpoint (one Qwen3 safetensors file) as GGUF beside it, once. Returns its path. A GGUF file is
    used as it is."""
    if directory.is_file():
        return directory
    path = directory / "bf16.gguf"
    if path.exists():
        return path
    config = json.loads((directory / "config.json").read_text())
    partial = path.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, config["model_type"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    _add_tokenizer(writer, directory, config["vocab_size"])
    data = (directory / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        start, stop = (8 + length + offset for offset in entry["data_offsets"])
        bits = np.frombuffer(data[start:stop], np.uint16).reshape(entry["shape"])
        if bits.ndim == 1:
            writer.add_tensor(_name(name), (bits.astype(np.uint32) << 16).view(np.float32))
        else:
            writer.add_tensor(_name(name), bits.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.rename(path)
    return path


def _name(name: str) -> str:
    stem = name.removesuffix(".weight")
    if stem in TOP:
        return f"{TOP[stem]}.weight"
    _, _, layer, rest = stem.split(".", 3)
    return f"blk.{layer}.{NAMES[rest]}.weight"


def _add_tokenizer(writer: gguf.GGUFWriter, directory: Path, vocab_size: int) -> None:
    model = json.loads((directory / "tokenizer.json").read_text())
    tokens = [f"[unused{i}]" for i in range(vocab_size)]
    for token, number in model["model"]["vocab"].items():
        tokens[number] = token
    kinds = [gguf.TokenType.NORMAL] * vocab_size
    for added in model["added_tokens"]:
        tokens[added["id"]] = added["content"]
        kinds[added["id"]] = gguf.TokenType.CONTROL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in model["model"]["merges"]])
    writer.add_eos_token_id(model["added_tokens"][-1]["id"])


class Batches:
    """Greedy decoding of several sequences at once."""

    def __init__(self, asked: dict[str, Any], file: Path) -> None:
        llama_cpp.llama_backend_init()
        batch = max(asked["batches"])
        model = llama_cpp.llama_model_load_from_file(str(file).encode(), llama_cpp.llama_model_default_params())
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = batch * (asked["prompt"] + asked["output"] + 16)
        params.n_seq_max = batch
        params.n_batch, params.n_ubatch = 2048, 512
        params.n_threads = params.n_threads_batch = asked["threads"]
        self.context = llama_cpp.llama_init_from_model(model, params)
        self.batch = llama_cpp.llama_batch_init(2048, 0, 1)
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))

    def generate(self, prompts: list[list[int]], tokens: int) -> list[list[int]]:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        rows = [(token, i, row, i == len(p) - 1) for row, p in enumerate(prompts) for i, token in enumerate(p)]
        last: dict[int, int] = {}
        for start in range(0, len(rows), 2048):
            last |= self._run(rows[start : start + 2048])
        answers = [[last[row]] for row in range(len(prompts))]
        for _ in range(tokens - 1):
            steps = [(answers[row][-1], len(p) + len(answers[row]) - 1, row, True) for row, p in enumerate(prompts)]
            for row, token in self._run(steps).items():
                answers[row].append(token)
        return answers

    def _run(self, rows: list[tuple[int, int, int, bool]]) -> dict[int, int]:
        """Decode (token, position, sequence, wants logits). Returns the best next token of each that wants one."""
        batch = self.batch
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, position, 1, wanted
            batch.seq_id[i][0] = sequence
        if llama_cpp.llama_decode(self.context, batch):
            raise RuntimeError("llama_decode failed")
        found = {}
        for i, (_, _, sequence, wanted) in enumerate(rows):
            if wanted:
                logits = llama_cpp.llama_get_logits_ith(self.context, i)
                found[sequence] = int(np.ctypeslib.as_array(logits, (self.vocab_size,)).argmax())
        return found


def main() -> None:
    asked = request()
    measure(asked, Batches(asked, to_gguf(Path(asked["directory"]))).generate)


if __name__ == "__main__":
    main()
