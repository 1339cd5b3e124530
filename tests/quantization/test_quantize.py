"""`ember quantize`: what it writes is the source, rounded, and others read it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from ember import cli
from ember.cli import quantize as quantizing
from ember.cli.quantize import FORMATS, GGUF
from ember.engine.errors import ModelError
from ember.engine.layers.float8_linear import Float8Linear
from ember.engine.layers.int_linear import IntLinear
from ember.engine.layers.table_linear import TableLinear
from ember.engine.loading.write import write_safetensors
from ember.engine.quantization.write_int import round_to_nearest
from ember.flags import QUANTIZE_FORMATS
from tests.engine_models.paged import Paged
from tests.engine_models.tiny import make_tiny, rewrite_config
from tests.quantization.checkpoints import load, matrices

SIZES: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 32}
LAYOUTS = (IntLinear, Float8Linear, TableLinear)
GROUPED = ("gptq", "gptq-8bit", "awq", "w4a16")


def quantized(source: Path, target: Path, form: str) -> Path:
    group = ["--group-size", "32"] if form in GROUPED else []
    assert cli.main(["quantize", str(source), str(target), "--format", form, *group]) == 0
    return target


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("variant", ["llama", "qwen3_moe", "phi3", "gpt2"])
def test_the_engine_reads_what_is_written(
    form: str, variant: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = {"llama": SIZES, "phi3": SIZES, "qwen3_moe": {**SIZES, "moe_intermediate_size": 64}}.get(
        variant, {"n_inner": 128, "n_embd": 64, "n_head": 4}
    )
    source = make_tiny(variant, tmp_path / "source", max_shard_size="60KB", **fields)
    if variant == "gpt2" and form.startswith("fp8"):
        assert cli.main(["quantize", str(source), str(tmp_path / "target"), "--format", form]) == 1
        assert f"GPT2LMHeadModel stores matrices as [in, out], which {form} has not" in capsys.readouterr().err
        return
    target = quantized(source, tmp_path / "target", form)
    left = {"gpt2": "", "qwen3_moe": "; left as they are: model.layers."}.get(variant, "; left as they are: lm_head")
    assert f"matrices quantized{left}" in capsys.readouterr().out
    found, exact = load(target), load(source)
    for ours, theirs in zip(matrices(found), matrices(exact), strict=True):
        error = (ours.weight - theirs.weight).norm() / theirs.weight.norm()
        assert error < (0.03 if "8" in form else 0.15)
        assert (error > 0) == isinstance(ours, LAYOUTS)
    assert sum(isinstance(linear, LAYOUTS) for linear in matrices(found)) == len(matrices(found)) - 1
    assert (target / "generation_config.json").exists() == (source / "generation_config.json").exists()
    assert not (target / "pytorch_model.bin").exists()


@pytest.mark.parametrize("form", ["gptq", "awq", "fp8"])
def test_a_checkpoint_whose_names_lack_the_prefix(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_tiny("llama_tied", tmp_path / "source", num_hidden_layers=1, **SIZES)
    tensors = load_file(source / "model.safetensors")
    write_safetensors(
        source / "model.safetensors", {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    )
    target = quantized(source, tmp_path / "target", form)
    assert "left as they are" not in capsys.readouterr().out
    assert sum(isinstance(linear, LAYOUTS) for linear in matrices(load(target))) == 4


@pytest.mark.parametrize("form", FORMATS)
def test_a_tied_head_stays_plain_in_other_programs(form: str, tmp_path: Path) -> None:
    """Every list of modules names the head. GPTQ's formats have a flag for it. All inputs are one group."""
    source = make_tiny("llama_tied", tmp_path / "source", num_hidden_layers=1, **SIZES | {"intermediate_size": 64})
    target = tmp_path / "target"
    group = ["--group-size", "64"] if form in GROUPED else []
    assert cli.main(["quantize", str(source), str(target), "--format", form, *group]) == 0
    fields = json.loads((target / "config.json").read_text())["quantization_config"]
    lists = [fields[name] for name in ("ignore", "modules_to_not_convert", "llm_int8_skip_modules") if name in fields]
    assert lists == [["lm_head"]] or fields["lm_head"] is False
    tokens = torch.tensor([3, 14, 15, 9])
    paged = Paged(load(target), [tokens])
    paged.step([(0, len(tokens))])
    if form == "w8a16":
        with torch.no_grad():
            theirs = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)(tokens[None]).logits[0]
        torch.testing.assert_close(paged.finish()[0], theirs, rtol=1e-3, atol=1e-3 * theirs.abs().max().item())


def test_the_formats_are_those_of_the_command() -> None:
    assert tuple(FORMATS) == tuple(form for form in QUANTIZE_FORMATS if not form.startswith(GGUF))


@pytest.mark.parametrize("form", ["w4a16", "w8a16", "w8a8", "fp8"])
def test_the_package_restores_the_same_weights(form: str, tmp_path: Path) -> None:
    source = make_tiny("llama", tmp_path / "source", num_hidden_layers=1, **SIZES)
    target = quantized(source, tmp_path / "target", form)
    config = json.loads((target / "config.json").read_text())["quantization_config"]
    group = config["config_groups"]["group_0"]
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**group["weights"]))
    compressor = BaseCompressor.get_value_from_registry(config["format"])
    tensors = load_file(target / "model.safetensors")
    module = "model.layers.0.mlp.down_proj."
    own = {name.removeprefix(module): tensor for name, tensor in tensors.items() if name.startswith(module)}
    restored = compressor.decompress(own, scheme)["weight"]
    assert isinstance(restored, Tensor)
    torch.testing.assert_close(next(load(target).parts.blocks[0].mlps()).down.weight, restored)


def test_a_scale_by_which_weights_are_no_numbers_is_named(tmp_path: Path) -> None:
    source = make_tiny("llama", tmp_path / "source", num_hidden_layers=1, **SIZES)
    target = quantized(source, tmp_path / "target", "nvfp4")
    tensors = load_file(target / "model.safetensors")
    tensors["model.layers.0.mlp.down_proj.weight_global_scale"].zero_()
    write_safetensors(target / "model.safetensors", tensors)
    with pytest.raises(ModelError, match=r"down_proj\.weight_global_scale.* no numbers"):
        load(target)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_rounding(bits: int, symmetric: bool) -> None:
    """Never worse than the range as it is, exact where it can be, and finite for zeros."""
    torch.manual_seed(bits)
    weight = torch.randn(6, 64)
    weight[0], weight[1, :32], weight[2] = 0, 1, weight[2].abs()
    made = round_to_nearest(weight, bits, 32, symmetric=symmetric, scales=torch.float32)
    zeros, scales = (part.repeat_interleave(32, 1) for part in (made.zeros.float(), made.scales))
    restored = (made.codes.float() - zeros) * scales
    most = weight.unflatten(1, (-1, 32))
    spread = most.abs().amax(-1) / (2 ** (bits - 1) - 1) if symmetric else (most.amax(-1) - most.amin(-1)) / 2**bits
    mean = (restored - weight).square().unflatten(1, (-1, 32)).mean(-1).sqrt()
    assert (mean <= spread * 0.5 + 1e-6).all() and (restored[0] == 0).all()
    assert int(made.codes.max()) < 2**bits
    assert not symmetric or (made.zeros == 2 ** (bits - 1)).all()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (
            ["--format", "awq"],
            "--group-size 128 must be a multiple of 8 that divides the 64 inputs of model.layers.0.",
        ),
        (
            ["--format", "w8a8", "--group-size", "32"],
            "--group-size has no meaning with --format w8a8, whose scales have a place of their own",
        ),
        (["--format", "awq", "--group-size", "3"], "--group-size must be a multiple of 8, not 3"),
    ],
)
def test_what_cannot_be_written(
    arguments: list[str], error: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_tiny("llama", tmp_path / "source", num_hidden_layers=1, **SIZES)
    assert cli.main(["quantize", str(source), str(tmp_path / "target"), *arguments]) != 0
    assert error in capsys.readouterr().err


def test_sources_and_targets_that_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make_tiny("llama", tmp_path / "source", num_hidden_layers=1, **SIZES)
    assert cli.main(["quantize", str(source), str(source), "--format", "w8a8"]) == 1
    assert "is not an empty directory: name another target" in capsys.readouterr().err
    rewrite_config(source, quantization_config={"quant_method": "fp8"})
    assert cli.main(["quantize", str(source), str(tmp_path / "new"), "--format", "w8a8"]) == 1
    assert "is quantized already (fp8): name a checkpoint with plain weights" in capsys.readouterr().err
    assert cli.main(["quantize", str(tmp_path / "none"), str(tmp_path / "new"), "--format", "w8a8"]) == 1
    assert "none does not exist: set SOURCE to an existing directory or a Hugging Face id" in capsys.readouterr().err
    assert cli.main(["quantize", str(source), " ", "--format", "w8a8"]) == 2
    assert "TARGET is empty: name a new directory" in capsys.readouterr().err


def test_nothing_is_left_of_a_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of several files cannot be written."""
    source = make_tiny("llama", tmp_path / "source", max_shard_size="60KB", **SIZES)
    made: list[Path] = []

    def full_disk(path: Path, tensors: Any) -> int:
        made.append(path)
        if len(made) == 2:
            raise OSError(28, "No space left on device", str(path))
        return write_safetensors(path, tensors)

    monkeypatch.setattr(quantizing, "write_safetensors", full_disk)
    (tmp_path / "empty").mkdir()
    for name in ("new", "empty"):
        made.clear()
        assert cli.main(["quantize", str(source), str(tmp_path / name), "--format", "w8a8"]) == 1
        assert "No space left on device" in capsys.readouterr().err and len(made) == 2
    assert not (tmp_path / "new").exists() and not list((tmp_path / "empty").iterdir())


def test_all_templates_are_copied(tmp_path: Path) -> None:
    source = make_tiny("llama", tmp_path / "source", num_hidden_layers=1, **SIZES)
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    target = quantized(source, tmp_path / "target", "w8a8")
    assert (target / "additional_chat_templates" / "tool_use.jinja").read_text() == "{{ tools }}"


def test_the_demo_models_package_is_not_copied(tmp_path: Path) -> None:
    target = quantized(Path("demo"), tmp_path / "target", "w8a8")
    assert (target / "tokenizer.json").exists() and not list(target.glob("*.py"))


def test_files_are_those_of_safetensors(tmp_path: Path) -> None:
    tensors = {
        "b": torch.arange(3, dtype=torch.int8),
        "a": torch.randn(2, 5).bfloat16(),
        "wide": torch.randn(3, 2).double().T,
        "empty": torch.zeros(0, 4),
        "scalar": torch.tensor(7),
    }
    size = write_safetensors(tmp_path / "file.safetensors", tensors)
    found = load_file(tmp_path / "file.safetensors")
    assert size == sum(tensor.nbytes for tensor in tensors.values()) and found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype
