"""What `ember inspect` predicts is what a boot does: operators, bytes, pages and lengths."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ember.boot import Timeline
from ember.engine.core.assemble import assemble
from ember.engine.core.boot import open_model
from ember.engine.core.engine import Engine
from ember.engine.core.prediction import CONTEXT_BYTES, GPUS, DeviceReport, Prediction, Target, here, predict
from ember.engine.errors import ModelError
from ember.engine.layers.block import DecoderParts
from ember.engine.layers.linear import Linear
from ember.engine.loading import cuda_context
from ember.engine.loading.load import load_decoder, read_model_config
from ember.wire import Configure, Ready
from tests.engine_models.test_shells import make_shell
from tests.engine_models.tiny import make_tiny, rewrite_config

GIB = 2**30
CPU = Target("here", "cpu", 8 * GIB, 8 * GIB)
LLAMA_70B = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128256,
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "dtype": "bfloat16",
}


def boot(**settings: Any) -> tuple[Engine, Ready]:
    configure = Configure(**settings)
    timeline = Timeline("test")
    return assemble(configure, open_model(configure, timeline, lambda message: None), timeline)


def on_cpu(**settings: Any) -> tuple[Prediction, DeviceReport]:
    predicted = predict(Configure(**settings), [CPU])
    return predicted, predicted.devices[0]


def resident_bytes(parts: DecoderParts) -> int:
    """The bytes of a Llama's weights, each counted once."""
    tokens = parts.embedding.tokens
    assert isinstance(tokens, Linear) and parts.final_norm is not None
    norms = [norm for block in parts.blocks for norm in (block.attention_norm, block.mlp_norm)] + [parts.final_norm]
    tensors = [tensor for linear in (*parts.matrices(), tokens) for tensor in linear.tensors()]
    tensors += [norm.weight for norm in norms if norm.weight is not None]
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())


SIZES = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "head_dim": 32}


@pytest.mark.parametrize(
    ("family", "fields", "settings"),
    [
        (None, {}, {}),
        (None, {}, {"max_model_len": 300, "max_num_seqs": 3, "block_size": 8}),
        (None, {}, {"dtype": "float32", "kv_cache_memory_bytes": 3_000_000}),
        (None, {}, {"kv_cache_dtype": "fp8", "num_blocks": 200}),
        ("llama", SIZES, {"cpu_weights": "int8"}),
        ("llama", {**SIZES, "tie_word_embeddings": True}, {"cpu_weights": "int4"}),
        ("gemma3", {}, {"kv_cache_memory_bytes": 5_000_000}),
        ("qwen2_moe", {}, {"max_num_seqs": 4}),
        ("gpt2", {}, {}),
        ("opt_post_norm", {}, {"dtype": "bfloat16"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value) if isinstance(value, dict) else "demo",
)
def test_a_prediction_is_what_a_boot_does(tmp_path, family, fields, settings):
    settings = {"model": "demo" if family is None else str(make_tiny(family, tmp_path, **fields)), **settings}
    predicted, device = on_cpu(**settings)
    engine, ready = boot(**settings, device="cpu")
    assert device.fits, device.reason
    assert f"{device.operators} ({device.operators_reason})" == ready.operators
    assert (predicted.architecture, device.dtype) == (ready.architecture, ready.dtype)
    assert (predicted.vocab_size, predicted.parameters) == (ready.vocab_size, ready.num_parameters)
    names = ("max_model_len", "block_size", "num_blocks", "max_num_seqs", "max_num_batched_tokens")
    assert {name: getattr(device, name) for name in names} == {name: getattr(ready, name) for name in names}
    assert predicted.warnings + device.warnings == ready.warnings
    cache, model = engine.runner.cache, engine.runner.model
    assert device.cache_bytes == cache.keys.nbytes + cache.values.nbytes
    assert device.cache_dtype == str(cache.keys.dtype).removeprefix("torch.")
    resident = model.weight_bytes if "cpu_weights" not in settings else resident_bytes(model.parts)
    assert device.weight_bytes == resident


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"max_model_len": 5000}, "MAX_MODEL_LEN=5000 is more than the model's 2048 positions"),
        ({"kv_cache_memory_bytes": 1000}, "the KV cache has room for 0 tokens"),
        ({"cpu_weights": "int8", "dtype": "float32"}, "CPU_WEIGHTS=int8 needs DTYPE=bfloat16 or auto"),
    ],
)
def test_a_device_that_cannot_serve_has_the_words_of_the_boot(settings, says):
    _, device = on_cpu(model="demo", **settings)
    with pytest.raises(ModelError, match=says) as raised:
        boot(model="demo", device="cpu", **settings)
    assert not device.fits and device.reason == str(raised.value)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"architectures": ["RwkvForCausalLM"]}, "RwkvForCausalLM is not of Ember's families and cannot be served"),
        ({"architectures": ["NobodysForCausalLM"]}, "NobodysForCausalLM is not supported"),
        ({"num_hidden_layers": 4}, "num_hidden_layers=4, but the files"),
        ({"hidden_size": "x"}, "hidden_size must be"),
        ({"quantization_config": {"quant_method": "strange"}}, "strange quantized weights are not supported"),
    ],
)
def test_a_model_that_cannot_be_served_has_the_words_of_the_boot(tmp_path, fields, says):
    directory = make_tiny("llama", tmp_path)
    rewrite_config(directory, **fields)
    with pytest.raises(ModelError, match=says) as predicted:
        predict(Configure(model=str(directory)), [CPU])
    with pytest.raises(ModelError, match=says) as raised:
        boot(model=str(directory), device="cpu")
    assert str(predicted.value) == str(raised.value)


def gpus(directory: Path, **settings: Any) -> Prediction:
    targets = [Target(name, "cuda", total, total - CONTEXT_BYTES) for name, total in GPUS.items()]
    return predict(Configure(model=str(directory), load_format="dummy", **settings), targets)


def test_what_fits_on_which_gpu(tmp_path):
    """70 billion parameters in 16 bits fit on none of them; 8 billion fit on all, with less room on a smaller one."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_70B))
    predicted = gpus(tmp_path)
    assert predicted.parameters == predicted.active_parameters == 70_553_706_496  # Llama 3 70B, as published
    assert not any(device.fits for device in predicted.devices)
    assert predicted.devices[0].reason is not None
    assert "the weights need 131.4 GiB, but the GPU has 78.5 GiB free" in predicted.devices[0].reason
    small = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_70B | small))
    predicted = gpus(tmp_path, max_model_len=8192)
    assert predicted.parameters == 8_030_261_248
    assert all(device.fits and device.operators == "triton" for device in predicted.devices)
    assert {device.cache_bytes_per_token for device in predicted.devices} == {2 * 32 * 8 * 128 * 2}
    room = [device.concurrency or 0.0 for device in predicted.devices]
    assert room == sorted(room, reverse=True) and room[0] > 50 > 5 > room[2] > 1
    for device in predicted.devices:
        assert device.cache_bytes and device.weight_bytes
        assert device.weight_bytes + device.cache_bytes < device.memory_bytes
        assert device.num_blocks and device.num_blocks * 16 // 8192 == int(device.concurrency or 0)


def test_a_boot_refuses_weights_that_do_not_fit(tmp_path):
    directory = make_tiny("llama", tmp_path)
    config = read_model_config(directory)
    needed = predict(Configure(model=str(directory), dtype="bfloat16"), [CPU]).devices[0].weight_bytes
    assert needed is not None
    options = {"dtype": torch.bfloat16, "device": torch.device("cpu")}
    with pytest.raises(ModelError, match=r"the weights need [\d.]+ KiB, but the GPU has [\d.]+ KiB free: use a larger"):
        load_decoder(directory, config, **options, free_bytes=needed - 1)
    assert load_decoder(directory, config, **options, free_bytes=needed).decoder.weight_bytes == needed


def test_experts_count_in_proportion(tmp_path):
    directory = make_tiny("mixtral", tmp_path, num_local_experts=4, num_experts_per_tok=1)
    predicted, _ = on_cpu(model=str(directory))
    fields = json.loads((directory / "config.json").read_text())
    one = 3 * fields["hidden_size"] * fields["intermediate_size"]  # gate, up and down of an expert
    assert predicted.parameters - predicted.active_parameters == 3 * 3 * one  # three of four, in three layers


def test_norms_of_experts_beside_an_mlp_compute_every_token(tmp_path):
    directory = make_tiny("gemma4_moe", tmp_path)
    fields, (predicted, _) = json.loads((directory / "config.json").read_text()), on_cpu(model=str(directory))
    total = 3 * 3 * fields["hidden_size"] * fields["moe_intermediate_size"] * fields["num_experts"]  # in three layers
    inactive = total - total * fields["top_k_experts"] // fields["num_experts"]
    assert predicted.parameters - predicted.active_parameters == inactive


def test_groups_of_the_cache(tmp_path):
    _, device = on_cpu(model=str(make_tiny("gemma3", tmp_path)))
    windows = {group.window for group in device.cache_groups}
    assert len(windows) == 2 and None in windows
    assert device.cache_bytes_per_token == sum(group.bytes_per_token for group in device.cache_groups)


def test_a_multimodal_checkpoint_is_described_as_text(tmp_path):
    make_shell("mistral3", tmp_path)
    predicted, _ = on_cpu(model=str(tmp_path))
    assert predicted.architecture == "Mistral3ForConditionalGeneration"
    assert predicted.text_architecture == "MistralForCausalLM"
    assert predicted.skipped_tensors > 0 and predicted.skipped_bytes > 0


class Driver:
    """The CUDA driver of a machine with one GPU, or of one where a call fails."""

    def __init__(self, fails: str = "") -> None:
        self.fails = fails

    def cuInit(self, flags):
        return self._status("cuInit")

    def cuDeviceGet(self, device, number):
        return self._status("cuDeviceGet")

    def cuDeviceGetName(self, name, size, device):
        name.value = b"NVIDIA Test"
        return self._status("cuDeviceGetName")

    def cuDeviceTotalMem_v2(self, total, device):
        total._obj.value = 24 * GIB
        return self._status("cuDeviceTotalMem_v2")

    def _status(self, name: str) -> int:
        return 100 if name == self.fails else 0


def test_the_device_here(monkeypatch):
    monkeypatch.setattr(cuda_context, "_driver", Driver)
    assert here("auto") == Target("this machine (NVIDIA Test)", "cuda", 24 * GIB, 24 * GIB - CONTEXT_BYTES)
    assert here("cpu").device == "cpu"
    for name in ("cuInit", "cuDeviceGet", "cuDeviceGetName", "cuDeviceTotalMem_v2"):
        assert cuda_context.find_device(Driver(name)) is None
    assert cuda_context.find_device(object()) is None
    monkeypatch.setattr(cuda_context, "_driver", lambda: None)
    assert here("auto").device == "cpu" and here("auto").total > 0
    device = predict(Configure(model="demo", device="cuda")).devices[0]
    assert not device.fits and device.reason is not None and "torch sees no GPU" in device.reason
