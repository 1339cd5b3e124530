"""LOAD_FORMAT and HF_OVERRIDES: files of torch.save, random weights, and fields that replace those of config.json."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ember.config_overrides import overridden
from ember.engine.description.read_config import load_config
from ember.engine.errors import ModelError
from ember.engine.loading.load import load_decoder
from ember.engine.loading.plan import read_headers
from ember.engine.loading.resolve import resolve_model
from ember.engine.models.decoder import Decoder
from tests.engine_models.tiny import make_tiny

CPU = torch.device("cpu")


def load(directory: Path, load_format: str = "auto") -> Decoder:
    config = load_config(directory)
    return load_decoder(directory, config, dtype=torch.float32, device=CPU, load_format=load_format).decoder


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """A checkpoint of which only the tensors are left, in memory."""
    directory = make_tiny("llama", tmp_path)
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    return directory, tensors


def assert_equal(model: Decoder, tensors: dict[str, torch.Tensor]) -> None:
    assert torch.equal(model.parts.head.weight, tensors["lm_head.weight"])
    for number, block in enumerate(model.parts.blocks):
        down = tensors[f"model.layers.{number}.mlp.down_proj.weight"]
        assert torch.equal(next(block.mlps()).down.weight, down)


def test_one_file_of_torch_save(saved: tuple[Path, dict[str, torch.Tensor]]) -> None:
    directory, tensors = saved
    wrapped = {name: torch.nn.Parameter(tensor) for name, tensor in tensors.items()}
    torch.save(wrapped, directory / "pytorch_model.bin")
    assert_equal(load(directory), tensors)
    assert_equal(load(directory, "pt"), tensors)
    assert resolve_model(str(directory)) == directory
    with pytest.raises(ModelError, match=r"no \*.safetensors files \(LOAD_FORMAT=safetensors\); its weights are .bin"):
        load(directory, "safetensors")


def test_shards_of_torch_save_and_views_of_one_storage(saved: tuple[Path, dict[str, torch.Tensor]]) -> None:
    directory, tensors = saved
    joined = torch.cat([tensors["model.layers.0.mlp.up_proj.weight"], tensors["model.layers.0.mlp.gate_proj.weight"]])
    rows = len(joined) // 2
    views = {"model.layers.0.mlp.up_proj.weight": joined[:rows], "model.layers.0.mlp.gate_proj.weight": joined[rows:]}
    names = sorted(tensors)
    shards = {"pytorch_model-00001-of-00002.bin": names[:9], "pytorch_model-00002-of-00002.bin": names[9:]}
    for file, part in shards.items():
        torch.save({name: views.get(name, tensors[name]) for name in part}, directory / file)
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert_equal(load(directory), tensors)
    (directory / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(ModelError, match="lacks pytorch_model-00002-of-00002.bin of the 2 weight files"):
        load(directory)


def _saved(tensors: dict[str, torch.Tensor]) -> bytes:
    memory = io.BytesIO()
    torch.save(tensors, memory)
    return memory.getvalue()


class _Runs:
    def __reduce__(self) -> Any:
        return print, ("code of the file ran",)


FAULTY = {
    "code": lambda file, tensors: torch.save({"a": _Runs()}, file),
    "a list": lambda file, tensors: torch.save([1], file),
    "not contiguous": lambda file, tensors: torch.save({"a": torch.ones(3, 4).t()}, file),
    "an old file": lambda file, tensors: torch.save(tensors, file, _use_new_zipfile_serialization=False),
    "no archive": lambda file, tensors: file.write_bytes(b"x" * 100),
    "cut off": lambda file, tensors: file.write_bytes(_saved(tensors)[:9000]),
    "no pickle": lambda file, tensors: zipfile.ZipFile(file, "w").writestr("archive/data.pkl", b"\x80\x02}."[:2]),
    "a pickle with a large memo": lambda file, tensors: zipfile.ZipFile(file, "w").writestr(
        "archive/data.pkl", b"\x80\x02}r" + (1 << 24).to_bytes(4, "little") + b"."
    ),
    "a pickle": lambda file, tensors: file.write_bytes(pickle.dumps({"a": 1})),
}


@pytest.mark.parametrize("fault", FAULTY)
def test_faulty_files_are_one_line(
    fault: str, saved: tuple[Path, dict[str, torch.Tensor]], capfd: pytest.CaptureFixture[str]
) -> None:
    directory, tensors = saved
    FAULTY[fault](directory / "pytorch_model.bin", tensors)
    with pytest.raises(ModelError) as raised:
        read_headers(directory)
    assert "pytorch_model.bin" in str(raised.value) and "\n" not in str(raised.value)
    assert "code of the file" not in capfd.readouterr().out


@pytest.mark.parametrize("family", ["llama", "opt_post_norm", "qwen3"])
def test_dummy_weights_need_no_files(family: str, tmp_path: Path) -> None:
    directory = make_tiny(family, tmp_path)
    (directory / "model.safetensors").unlink()
    assert resolve_model(str(directory), load_format="dummy") == directory
    one, other = load(directory, "dummy"), load(directory, "dummy")
    weight = next(one.parts.blocks[0].mlps()).up.weight
    assert torch.equal(weight, next(other.parts.blocks[0].mlps()).up.weight) and 0 < weight.abs().max() <= 1e-3
    assert not torch.equal(weight, next(one.parts.blocks[1].mlps()).up.weight)


def test_overrides_replace_fields(tmp_path: Path) -> None:
    directory = make_tiny("llama", tmp_path)
    assert load_config(directory, {"max_position_embeddings": 99}).max_position_embeddings == 99
    yarn = {"rope_type": "yarn", "factor": 2.0, "rope_theta": 7.0, "original_max_position_embeddings": 64}
    rope = load_config(directory, {"rope_scaling": yarn}).rope
    assert rope is not None and (rope.kind, rope.factor, rope.theta) == ("yarn", 2.0, 7.0)
    with pytest.raises(ModelError, match="config.json with HF_OVERRIDES: hidden_size must be an integer"):
        load_config(directory, {"hidden_size": "wide"})
    with pytest.raises(ModelError, match="architectures: NoneForCausalLM is not supported"):
        load_config(directory, {"architectures": ["NoneForCausalLM"]})


def test_overrides_are_merged_with_nested_configurations_alone() -> None:
    values = {"text_config": {"a": 1, "rope_parameters": {"x": 1}}, "quantization_config": {"q": 1}, "b": {"c": 1}}
    changes = {"text_config": {"rope_parameters": {"y": 2}}, "quantization_config": {"r": 1}, "b": {"d": 1}}
    assert overridden(values, changes) == {**changes, "text_config": {"a": 1, "rope_parameters": {"y": 2}}}
    assert values["text_config"] == {"a": 1, "rope_parameters": {"x": 1}}
