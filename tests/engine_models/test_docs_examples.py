"""The examples of docs/adding-models.md, word for word: a model family, and a weight format."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from ember.engine.description.families import registry
from ember.engine.description.read_config import load_config
from ember.engine.errors import ModelError
from ember.engine.loading import load as loading
from ember.engine.loading import mapped
from ember.engine.loading.load import load_decoder, read_model_config
from ember.engine.quantization import formats
from tests.engine_models import test_known_fields, tiny
from tests.engine_models.paged import Paged

PAGE = Path(__file__).parents[2] / "docs" / "adding-models.md"
EXAMPLE = re.compile(
    r"^`(?:description|quantization|tests)/\S+\.py`:\n\n```python\n(.*?)```$", re.DOTALL | re.MULTILINE
)


def example(file: str) -> str:
    """The example for a file of the page."""
    (found,) = (match[1] for match in EXAMPLE.finditer(PAGE.read_text()) if match[0].startswith(f"`{file}`:"))
    return found


def add_module(monkeypatch: pytest.MonkeyPatch, room: str, name: str, file: str) -> None:
    module = ModuleType(f"ember.engine.{room}.{name}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(example(file), file, "exec"), module.__dict__)


def row(file: str) -> dict[str, Any]:
    """The line that an example adds to a table."""
    found = eval(f"{{{example(file)}}}")
    assert isinstance(found, dict) and len(found) == 1
    return found


class FinchConfig(transformers.Phi3Config):
    """The configuration class of a family that does not exist."""

    model_type = "finch"


class FinchForCausalLM(transformers.Phi3ForCausalLM):
    config_class = FinchConfig


@pytest.fixture
def finch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The family of the example is added, and a tiny model of it is there."""
    for added in (FinchConfig, FinchForCausalLM):  # the package replaces its module while it is imported
        monkeypatch.setattr(sys.modules["transformers"], added.__name__, added, raising=False)
    transformers.AutoConfig.register("finch", FinchConfig, exist_ok=True)
    transformers.AutoModelForCausalLM.register(FinchConfig, FinchForCausalLM, exist_ok=True)
    add_module(monkeypatch, "description.families", "finch", "description/families/finch.py")
    ((architecture, entry),) = row("description/families/registry.py").items()
    monkeypatch.setitem(registry.ARCHITECTURES, architecture, entry)
    monkeypatch.setitem(registry.MODEL_TYPES, entry[0], architecture)
    ((variant, made),) = row("tests/engine_models/tiny.py").items()
    monkeypatch.setitem(tiny.VARIANTS, variant, made)
    return tiny.make_tiny(variant, tmp_path / "finch")


def test_the_family_passes_the_tests_of_every_family(finch: Path, tmp_path: Path) -> None:
    test_known_fields.test_no_field_of_a_class_goes_by_unseen("FinchForCausalLM")
    test_known_fields.test_a_family_reads_what_it_lists_and_nothing_else("FinchForCausalLM")
    assert len(example("description/families/finch.py").splitlines()) <= 40


def test_absent_fields_of_the_family(finch: Path, tmp_path: Path) -> None:
    test_known_fields.test_absent_fields_have_the_defaults_of_transformers("FinchForCausalLM", tmp_path)


@pytest.mark.parametrize("is_mapped", [True, False])
def test_the_family_computes_what_transformers_does(
    is_mapped: bool, finch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped, "SMALL_BYTES", 0)
    if not is_mapped:
        monkeypatch.setattr(loading, "begin_plan", lambda plan, device: None)
    loaded = load_decoder(finch, load_config(finch), dtype=torch.float32, device=torch.device("cpu"))
    assert (loaded.pages is not None) == is_mapped
    tokens = torch.randint(3, tiny.VOCAB_SIZE, (23,))
    paged = Paged(loaded.decoder, [tokens])
    paged.step([(0, 15)])
    paged.step([(0, 8)])
    model = transformers.AutoModelForCausalLM.from_pretrained(finch, attn_implementation="eager")
    with torch.inference_mode():
        expected = model(tokens[None]).logits[0]
    torch.testing.assert_close(paged.finish()[0], expected, rtol=1e-3, atol=1e-3)


def quantize(directory: Path, left_alone: str) -> dict[str, torch.Tensor]:
    """Store the matrices of a checkpoint in the example's format. Returns what they stand for."""
    file, config = directory / "model.safetensors", directory / "config.json"
    tensors, stands_for = load_file(file), {}
    for name, weight in list(tensors.items()):
        if name.endswith("_proj.weight") and name != f"{left_alone}.weight":
            scales = weight.abs().amax(1) / 127
            tensors[name] = (weight / scales[:, None]).round().to(torch.int8)
            tensors[f"{name}_scale"] = scales
            stands_for[name] = tensors[name] * scales[:, None]
    save_file(tensors, file)
    quantization = {"quant_method": "row-int8", "modules_to_not_convert": [left_alone, "lm_head"]}
    config.write_text(json.dumps(json.loads(config.read_text()) | {"quantization_config": quantization}))
    return stands_for


@pytest.mark.parametrize("is_mapped", [True, False])
@pytest.mark.parametrize("variant", ["llama_mha", "finch"])
def test_the_format_restores_every_familys_weights(
    variant: str, is_mapped: bool, finch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_module(monkeypatch, "quantization", "row_int8", "quantization/row_int8.py")
    ((method, place),) = row("quantization/formats.py").items()
    monkeypatch.setitem(formats.FORMATS, method, place)
    monkeypatch.setattr(mapped, "SMALL_BYTES", 0)
    if not is_mapped:
        monkeypatch.setattr(loading, "begin_plan", lambda plan, device: None)
    directory = finch if variant == "finch" else tiny.make_tiny(variant, tmp_path / variant)
    left_alone = "model.layers.1.mlp.down_proj"
    stands_for = quantize(directory, left_alone)
    assert stands_for
    plain = load_file(directory / "model.safetensors")
    config = read_model_config(directory)
    for block, number in zip(
        load_decoder(directory, config, dtype=torch.float32, device=torch.device("cpu")).decoder.parts.blocks,
        range(config.num_layers),
        strict=True,
    ):
        prefix = f"model.layers.{number}."
        fused = ["self_attn.qkv_proj"] if variant == "finch" else [f"self_attn.{name}_proj" for name in "qkv"]
        qkv = torch.cat([stands_for[f"{prefix}{name}.weight"] for name in fused])
        torch.testing.assert_close(block.attention.qkv.weight, qkv)
        down = plain if f"{prefix}mlp.down_proj" == left_alone else stands_for
        torch.testing.assert_close(next(block.mlps()).down.weight, down[f"{prefix}mlp.down_proj.weight"])
    with pytest.raises(ModelError, match=r"q(kv)?_proj.weight_scale"):
        tensors = {name: tensor for name, tensor in plain.items() if not name.endswith("qkv_proj.weight_scale")}
        tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith("q_proj.weight_scale")}
        save_file(tensors, directory / "model.safetensors")
        load_decoder(directory, config, dtype=torch.float32, device=torch.device("cpu"))


def test_formats_that_are_not_there_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tiny.make_tiny("llama", tmp_path)
    quantize(directory, "none")
    with pytest.raises(ModelError, match=r"config\.json: row-int8 quantized weights are not supported; supported are "):
        read_model_config(directory)
    monkeypatch.setitem(formats.FORMATS, "other", "other.Other")
    with pytest.raises(ModelError, match="row-int8 .* supported are .*other; use"):
        read_model_config(directory)
