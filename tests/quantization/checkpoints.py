"""Tiny checkpoints of a weight format, beside plain ones with the restored weights, and what both have to answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ember.engine.core.prediction import Target, predict
from ember.engine.layers.linear import Linear
from ember.engine.loading.load import load_decoder, read_model_config
from ember.engine.models.decoder import Decoder
from ember.engine.operators.choose import decision_for
from ember.wire import Configure, Generate
from tests.engine_core.inline import greedy, make_engine, run, tokens
from tests.engine_models.tiny import VOCAB_SIZE, make_tiny, rewrite_config

CPU = torch.device("cpu")
NUM_OUTPUT = 8
Store = Callable[[str, Tensor], tuple[Mapping[str, Tensor], Tensor]]
"""From the name of a stored matrix and its weight to the tensors that a checkpoint has instead, and the weight that
they stand for."""


def is_matrix(name: str) -> bool:
    """Whether most programs quantise a stored tensor of this name."""
    quantised = ("_proj.weight", ".fc1.weight", ".fc2.weight", "qkv.weight", "w1.weight", "w2.weight", "w3.weight")
    return name.endswith(quantised)


def twins(
    variant: str,
    root: Path,
    quantization: Mapping[str, Any],
    store: Store,
    is_stored: Callable[[str], bool] = is_matrix,
    **fields: Any,
) -> tuple[Path, Path]:
    """A checkpoint in the format, and a plain one in float32 with the weights that it stands for. `is_stored`: of the
    names of the tensors that are replaced."""
    plain, quantized = make_tiny(variant, root / "plain", **fields), make_tiny(variant, root / "quantized", **fields)
    weights = load_file(plain / "model.safetensors")
    stored: dict[str, Tensor] = {}
    for name, weight in list(weights.items()):
        if is_stored(name):
            replaced, restored = store(name, weight)
            stored |= {key: tensor.contiguous() for key, tensor in replaced.items()}
            weights[name] = restored.to(torch.float32).contiguous()
        else:
            stored[name] = weight
    assert len(stored) > len(weights)
    save_file(weights, plain / "model.safetensors", metadata={"format": "pt"})
    save_file(stored, quantized / "model.safetensors", metadata={"format": "pt"})
    rewrite_config(quantized, quantization_config=dict(quantization))
    return quantized, plain


def load(directory: Path, dtype: torch.dtype = torch.float32, quantization: str | None = None) -> Decoder:
    config = read_model_config(directory, quantization=quantization)
    return load_decoder(directory, config, dtype=dtype, device=CPU).decoder


def matrices(model: Decoder) -> list[Linear]:
    return [linear for block in model.parts.blocks for linear in block.matrices()] + [model.parts.head]


def check_weights(quantized: Path, plain: Path, rtol: float = 0.0, dtype: torch.dtype = torch.float32) -> Decoder:
    """Whether every matrix is restored as it has to be, and smaller. Returns the quantised model."""
    found, expected = load(quantized, dtype), load(plain, dtype)
    for ours, theirs in zip(matrices(found), matrices(expected), strict=True):
        torch.testing.assert_close(ours.weight, theirs.weight, rtol=rtol, atol=rtol * 0.1)
    assert found.num_parameters == expected.num_parameters
    check_prediction(quantized, found)
    assert found.weight_bytes < expected.weight_bytes
    return found


def check_prediction(directory: Path, model: Decoder, **settings: Any) -> None:
    """Whether what `ember inspect` says without torch is so: the parameters, the operators with the reason, and at most
    a tenth more bytes than there are."""
    targets = [Target("cpu", "cpu", 1 << 33, 1 << 33), Target("80 GB GPU", "cuda", 1 << 33, 1 << 33)]
    for dtype, activations in ((model.dtype, "auto"), (torch.bfloat16, "auto"), (torch.bfloat16, "float")):
        name = str(dtype).removeprefix("torch.")
        configure = Configure(model=str(directory), dtype=name, cpu_activations=activations, **settings)
        predicted = predict(configure, targets)
        assert predicted.parameters == model.num_parameters
        for device in predicted.devices:
            decision = decision_for(model.config, model.parts, dtype, device.device, activations=activations)
            assert f"{device.operators} ({device.operators_reason})" == str(decision)
            assert device.weight_bytes is not None
            if dtype == model.dtype:
                assert model.weight_bytes <= device.weight_bytes <= 1.1 * model.weight_bytes


PROMPTS = [[7, 9, 11], list(range(20, 53)), [5] * 17, [VOCAB_SIZE - 1]]


def check_answers(quantized: Path, plain: Path, **configure: Any) -> None:
    """Whether greedy answers in float32 equal those of transformers on the restored weights."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32).eval()
    engine = make_engine(quantized, **configure)
    outputs = run(engine, [Generate(i, prompt, greedy(NUM_OUTPUT)) for i, prompt in enumerate(PROMPTS)])
    for i, prompt in enumerate(PROMPTS):
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            made = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=NUM_OUTPUT,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        assert tokens(outputs[i, 0]) == made[0, len(prompt) :].tolist()
