"""What every layout of weights has in common: a layout of this file goes through whole models, on each operator set."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ember.engine.core.chores import settle_weights
from ember.engine.description.config import DecoderConfig
from ember.engine.description.native_forms import refusal
from ember.engine.description.read_config import load_config
from ember.engine.description.weights import LinearSpec, Spec, TensorSpec
from ember.engine.errors import ModelError
from ember.engine.layers.experts import Experts
from ember.engine.layers.joined import JoinedLinear, joined
from ember.engine.layers.linear import Linear, cut
from ember.engine.layers.restored import RestoredLinear
from ember.engine.layers.scratch import reserve, scratch
from ember.engine.loading.load import load_decoder, read_model_config
from ember.engine.loading.resolve import resolve_model
from ember.engine.models.decoder import Decoder
from ember.engine.operators.torch_ops import TorchOperators
from ember.engine.quantization import formats
from ember.engine.quantization.base import Files, Source
from ember.engine.quantization.held import Held
from ember.engine.quantization.ignored import Ignored
from ember.engine.quantization.plain import Plain
from tests.engine_models.paged import Paged
from tests.engine_models.tiny import VOCAB_SIZE, make_tiny, rewrite_config
from tests.support.operators import choose_for

CPU = torch.device("cpu")


class EighthsLinear(RestoredLinear):
    """Numbers of steps of an eighth: weight = eighths / 8, int8."""

    __slots__ = ("eighths",)

    def __init__(self, eighths: Tensor, dtype: torch.dtype, bias: Tensor | None = None) -> None:
        super().__init__(dtype, bias)
        self.eighths = eighths

    @property
    def out_features(self) -> int:
        return len(self.eighths)

    @property
    def in_features(self) -> int:
        return self.eighths.shape[1]

    def tensors(self) -> Iterator[Tensor]:
        yield self.eighths
        if self.bias is not None:
            yield self.bias

    def select(self, rows: slice | Tensor) -> Self:
        return type(self)(self.eighths[rows], self.dtype)

    def restored(self) -> Tensor:
        return (self.eighths.float() / 8).to(self.dtype)


class Eighths:
    """The table and each stored matrix is a layer of its own, rounded to steps of an eighth when it is loaded."""

    name = "eighths"
    unused: tuple[str, ...] = (".comment",)

    def __init__(self, config: DecoderConfig, files: Files) -> None:
        self._plain = Plain()

    def sources(self, spec: Spec) -> list[Source]:
        return self._plain.sources(spec)

    def held(self, spec: Spec, element_size: int) -> Held:
        return self._plain.held(spec, element_size)

    def assemble(self, spec: Spec, tensors: Mapping[str, tuple[Tensor, ...]], dtype: torch.dtype) -> Linear | Tensor:
        plain = self._plain.assemble(spec, tensors, dtype)
        if isinstance(spec, TensorSpec):
            assert isinstance(plain, Tensor)
            return EighthsLinear(eighths(plain), dtype) if spec.name == "embed_tokens" else plain
        assert isinstance(spec, LinearSpec) and isinstance(plain, Linear)
        parts = plain.weight.split([output.rows.total for output in spec.outputs])
        return joined([EighthsLinear(eighths(part), dtype) for part in parts], plain.bias)


def eighths(weight: Tensor) -> Tensor:
    return (weight.float() * 8).round().clamp(-100, 100).to(torch.int8)


@pytest.fixture(autouse=True)
def the_format(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("ember.engine.quantization.eighths")
    module.Eighths = Eighths  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(formats.FORMATS, "eighths", "eighths.Eighths")


def twins(variant: str, directory: Path, **fields: Any) -> tuple[Path, Path]:
    """A model in that format, and a plain one with the same weights."""
    plain = make_tiny(variant, directory / "plain", **fields)
    quantized = make_tiny(variant, directory / "quantized", **fields)
    tensors = load_file(plain / "model.safetensors")
    for name, weight in tensors.items():
        if weight.dim() > 1:
            tensors[name] = (eighths(weight).float() / 8).to(weight.dtype)
    save_file(tensors, plain / "model.safetensors")
    stored = load_file(quantized / "model.safetensors")
    save_file(stored | {"model.norm.comment": torch.zeros(1)}, quantized / "model.safetensors")
    config = quantized / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"quantization_config": {"quant_method": "eighths"}}))
    return quantized, plain


def load(directory: Path, dtype: torch.dtype) -> Decoder:
    return load_decoder(directory, read_model_config(directory), dtype=dtype, device=CPU).decoder


def logits(model: Decoder) -> list[Tensor]:
    """Of a prompt in two pieces and single tokens, beside another sequence."""
    torch.manual_seed(3)
    paged = Paged(model, [torch.randint(3, VOCAB_SIZE, (19,)), torch.randint(3, VOCAB_SIZE, (40,))])
    paged.step([(0, 9), (1, 30)])
    paged.step([(1, 10), (0, 6)])
    for _ in range(4):
        paged.step([(0, 1)])
    return paged.finish()


SIZES = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variant", ["llama_mha", "llama_tied", "phi3", "qwen3_moe"])
def test_a_model_of_another_layout_computes_what_the_restored_weights_do(
    variant: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    quantized, plain = (load(path, dtype) for path in twins(variant, tmp_path, **SIZES, dtype=dtype))
    assert quantized.num_parameters == plain.num_parameters
    assert quantized.weight_bytes < plain.weight_bytes
    assert quantized.parts.layouts() >= {EighthsLinear}
    assert quantized.bytes_read(1) <= quantized.weight_bytes
    assert isinstance(plain.ops, TorchOperators)
    expected = logits(plain)
    for found, wanted in zip(logits(quantized), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 if dtype == torch.float32 else 0.05)
    choice = choose_for(quantized)
    if choice.name == "native":
        assert "torch restores and multiplies EighthsLinear" in choice.reason
        plain.ops, quantized.ops = choose_for(plain).ops, choice.ops
        for found, wanted in zip(logits(quantized), logits(plain), strict=True):
            assert (found - wanted).norm() < 0.05 * wanted.norm()  # torch's products are rounded elsewhere
    before = logits(quantized)
    for _ in settle_weights(quantized, None):
        pass
    for found, wanted in zip(logits(quantized), before, strict=True):
        assert (found - wanted).norm() < 0.05 * wanted.norm()


def test_the_experts_are_views_of_their_layer(tmp_path: Path) -> None:
    model = load(twins("qwen3_moe", tmp_path)[0], torch.float32)
    experts = next(block.mlp for block in model.parts.blocks if isinstance(block.mlp, Experts))
    assert experts.up is None and len(experts.each) == experts.config.count
    gate_up, down = experts.each[1].up, experts.each[1].down
    assert isinstance(gate_up, JoinedLinear) and len(gate_up.parts) == 2 and isinstance(down, EighthsLinear)
    assert gate_up.weight.shape == (2 * experts.config.intermediate_size, 64)


def test_layers_are_cut_where_they_do_not_end() -> None:
    assert cut([2, 5, 1], 4) == [[(0, 0, 2), (1, 0, 2)], [(1, 2, 5), (2, 0, 1)]]
    torch.manual_seed(0)
    weight, bias = torch.randint(-50, 50, (12, 6), dtype=torch.int8), torch.randn(12)
    whole = JoinedLinear(
        [
            EighthsLinear(weight[:5], torch.float32),
            Linear(weight[5:7].float() / 8),
            EighthsLinear(weight[7:], torch.float32),
        ],
        bias,
    )
    x = torch.randn(3, 6)
    expected = x @ (weight.float() / 8).T + bias
    torch.testing.assert_close(whole(x), expected)
    torch.testing.assert_close(torch.cat([part(x) for part in whole.split(3)], dim=1), expected)
    torch.testing.assert_close(whole.look_up(torch.tensor([11, 5, 0])), (weight.float() / 8)[[11, 5, 0]])
    nested = joined([joined(whole.split(2)), whole.split(2)[0]], torch.cat((bias, bias[:6])))
    torch.testing.assert_close(nested(x), torch.cat((expected, expected[:, :6]), dim=1))
    alone = EighthsLinear(weight, torch.float32, bias)
    torch.testing.assert_close(torch.cat([part(x) for part in alone.split(4)], dim=1), expected)
    assert whole.num_parameters == alone.num_parameters == 12 * 6 + 12
    assert alone.nbytes == 12 * 6 + 12 * 4


def test_the_scratch_grows_and_is_written_in_any_mode() -> None:
    with torch.inference_mode():
        scratch(3, 5, torch.float64, CPU).fill_(1)
    scratch(3, 4, torch.float64, CPU).fill_(2)
    held = reserve(0, torch.float64, CPU)
    assert held.numel() >= 15 and scratch(2, 2, torch.float64, CPU).data_ptr() == held.data_ptr()


@pytest.mark.parametrize(
    ("asked", "method", "error"),
    [
        (None, "eighths", None),
        ("eighths", "eighths", None),
        (
            "awq",
            "eighths",
            "method of the model's config.json is eighths, which does not match QUANTIZATION=awq: leave",
        ),
        ("awq", None, "QUANTIZATION=awq, but the model's config.json has no quantization_config: its weights are not"),
        (None, None, None),
    ],
)
def test_the_setting_and_the_checkpoint_must_agree(
    asked: str | None, method: str | None, error: str | None, tmp_path: Path
) -> None:
    directory = make_tiny("llama", tmp_path)
    if method is not None:
        config = directory / "config.json"
        config.write_text(
            json.dumps(json.loads(config.read_text()) | {"quantization_config": {"quant_method": method}})
        )
    if error is None:
        assert (read_model_config(directory, quantization=asked).quantization or {}).get("quant_method") == method
        return
    with pytest.raises(ModelError, match=error):
        read_model_config(directory, quantization=asked)


def test_a_quantization_without_a_method_names_the_field(tmp_path: Path) -> None:
    directory = make_tiny("llama", tmp_path)
    config = directory / "config.json"
    rewrite_config(directory, quantization_config={"quant_method": "AWQ", "bits": 4})
    assert (read_model_config(directory).quantization or {})["quant_method"] == "awq"
    rewrite_config(directory, quantization_config={"quant_method": 5})
    with pytest.raises(ModelError, match=r"quantization_config\.quant_method must be the name of a format.*, not 5"):
        read_model_config(directory)
    config.write_text(json.dumps(json.loads(config.read_text()) | {"quantization_config": {"bits": 4}}))
    with pytest.raises(ModelError, match=r"config\.json: quantization_config has no quant_method.* one of fp8, .*gptq"):
        read_model_config(directory)


def test_settings_that_no_gguf_file_can_have_say_that_it_is_one() -> None:
    config = replace(read_model_config(resolve_model("demo")), quantization={"quant_method": "gguf"})
    with pytest.raises(ModelError, match="weights are in a GGUF file, which does not match QUANTIZATION=fp8"):
        formats.with_quantization(config, "fp8")
    assert "matrices of GGUF files are used as they are stored" in (refusal(config, "bfloat16", "int4") or "")


@pytest.mark.parametrize("is_file", [True, False])
def test_a_contradiction_names_the_file_that_says_otherwise(
    is_file: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = make_tiny("llama", tmp_path)
    config = replace(load_config(directory), quantization={"quant_method": "gguf"})
    monkeypatch.setattr("ember.engine.loading.load.load_config", lambda *_: config)
    model = directory / "model.safetensors" if is_file else directory
    file = model if is_file else directory / "config.json"
    with pytest.raises(ModelError, match=f"^{re.escape(str(file))}: the model's weights are in a GGUF file"):
        read_model_config(model, quantization="awq")


@pytest.mark.parametrize(
    ("entry", "covered", "left"),
    [
        ("lm_head", ["lm_head"], ["model.lm_heads", "model.embed_tokens"]),
        ("model.layers.1", ["model.layers.1.mlp.up_proj", "model.layers.1"], ["model.layers.10.mlp.up_proj"]),
        ("mlp.gate", ["model.layers.3.mlp.gate"], ["model.layers.3.mlp.gate_proj", "model.layers.3.mlp.gate_up_proj"]),
        ("model.layers.*.mlp.down_proj", ["model.layers.7.mlp.down_proj"], ["model.layers.7.mlp.up_proj"]),
        ("re:.*down_proj$", ["a.b.down_proj"], ["a.down_proj.b"]),
        ("re:layers", [], ["model.layers.0.mlp"]),
        ("model.layers.0.self_attn.qkv_proj", ["model.layers.0.self_attn.k_proj"], ["model.layers.0.self_attn.o_proj"]),
        ("re:.*gate_up_proj", ["x.mlp.up_proj", "x.mlp.gate_up_proj"], ["x.mlp.down_proj"]),
    ],
)
def test_modules_that_are_left_unquantised(entry: str, covered: list[str], left: list[str]) -> None:
    ignored = Ignored([entry], "ignore")
    assert [name for name in covered + left if name in ignored] == covered


@pytest.mark.parametrize(
    ("entries", "error"), [(["re:("], r"ignore has .re:\(., which is no reg"), ([3], "ignore has 3")]
)
def test_lists_that_cannot_be_read(entries: list[Any], error: str) -> None:
    with pytest.raises(ModelError, match=error):
        Ignored(entries, "ignore")
