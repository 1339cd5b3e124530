"""Weights of 8 and 4 bits: what is stored is the format, and the model is that of the weights it stands for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from ember.engine.description.native_forms import CPU_WEIGHTS
from ember.engine.errors import ModelError
from ember.engine.layers.block_linear import BlockLinear
from ember.engine.layers.linear import Linear
from ember.engine.models.decoder import Decoder
from ember.engine.operators.native_matrix import matrix_of
from ember.engine.quantization.cpu_int import quantise, to_blocks
from ember.wire import Generate
from ember_cpu import library as native
from tests.cpu_kernels.test_native_forward import build, error  # noqa: F401
from tests.engine_core.inline import greedy, make_engine, run, tokens
from tests.engine_models.paged import Paged
from tests.engine_models.test_parity import chunked, decode, load, mixed, reference, together, whole
from tests.engine_models.test_parity import tokens as sequences_of_tokens
from tests.engine_models.tiny import make_tiny
from tests.support.operators import choose_for

SIZES: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32, "dtype": torch.bfloat16}
OPT_SIZES: dict[str, Any] = {"hidden_size": 128, "ffn_dim": 256, "word_embed_proj_dim": 128, "dtype": torch.bfloat16}
GEMMA4_SIZES = {**SIZES, "global_head_dim": 64, "hidden_size_per_layer_input": 128}
KINDS = list(CPU_WEIGHTS)


def stands_for(weight: Tensor, kind: str) -> Tensor:
    """The bfloat16 weight that a bfloat16 [rows, columns] becomes, by the format's words."""
    groups = weight.float().view(len(weight), -1, 32)
    if kind == "int8":
        scales, most = groups.abs().amax(-1, keepdim=True) / 127, 127
    else:
        largest, lowest = groups.amax(-1, keepdim=True), groups.amin(-1, keepdim=True)
        scales, most = torch.where(largest > -lowest, largest, lowest) / -8, 7
    inverse = torch.where(scales == 0, 0.0, 1 / scales)
    whole_numbers = (groups * inverse).round().clamp(max=most)
    return (whole_numbers * scales.half().float()).view_as(weight).bfloat16()


def quantised(directory: Path, kind: str, activations: str = "auto") -> Decoder:
    model = load(directory, torch.bfloat16)
    model.weight_bytes = quantise(model.parts, kind, None)
    choice = choose_for(model, kind, activations)
    assert choice.name == "native" and f"{kind} weights" in choice.reason
    model.ops = choice.ops
    return model


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    root = tmp_path_factory.mktemp("quantised")
    made: dict[tuple[str, str], tuple[Path, Path]] = {}

    def checkpoint(family: str, kind: str) -> tuple[Path, Path]:
        """A model, and the one that its quantised form stands for."""
        if (family, kind) not in made:
            sizes = {"opt": OPT_SIZES, "gemma4_small": GEMMA4_SIZES}.get(family, SIZES)
            directory = make_tiny(family, root / family, **sizes)
            twin = make_tiny(family, root / f"{family}-{kind}", **sizes, tie_word_embeddings=False)
            weights = safetensors.torch.load_file(directory / "model.safetensors")
            (tokens,) = (weight for name, weight in weights.items() if name.endswith("embed_tokens.weight"))
            weights.setdefault("lm_head.weight", tokens.clone())
            for name, weight in weights.items():
                if weight.dim() == 2 and not name.endswith(("embed_positions.weight", "embed_tokens_per_layer.weight")):
                    is_token = "embed" in name or "lm_head" in name
                    weights[name] = stands_for(weight, "int8" if is_token else kind)
            safetensors.torch.save_file(weights, twin / "model.safetensors", metadata={"format": "pt"})
            made[family, kind] = directory, twin
        return made[family, kind]

    return checkpoint


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("piece", [2**25, 5000])
def test_what_is_stored_is_the_format(build, kind, piece, monkeypatch):  # noqa: F811
    monkeypatch.setattr("ember.engine.quantization.cpu_int._PIECE", piece)
    library = native.load(build)
    assert library is not None
    torch.manual_seed(1)
    weight = torch.randn(50, 384).bfloat16()
    weight[3, 64:96] = 0
    weight[4, :32] = 2.5
    weight[5, :32] = -2.5
    weight[6, 128] = 300
    linear = to_blocks(library, Linear(weight[:20], weight[20:]), CPU_WEIGHTS[kind])
    assert torch.equal(linear.weight, stands_for(weight, kind))
    assert linear.nbytes == 50 * 12 * (34 if kind == "int8" else 18)
    spread = (linear.weight.float() - weight.float())[10:].std() / weight.float().std()
    assert 0 < spread < {"int8": 0.01, "int4": 0.12}[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_groups_out_of_range(build, kind):  # noqa: F811
    """A weight that is no number, or whose scale is none in float16, is not hidden; a tiny one does no harm."""
    library = native.load(build)
    assert library is not None
    weight = torch.ones(8, 128).bfloat16()
    weight[0, 5], weight[1, 70], weight[2, 0], weight[7, 100] = torch.nan, torch.inf, -torch.inf, 1e8
    weight[3, :32] = 0
    weight[3, :2] = torch.tensor([-1e-37, 5e-38])
    made = to_blocks(library, Linear(weight), CPU_WEIGHTS[kind]).weight
    assert made[0, :32].isnan().all() and made[1, 64:96].isnan().all() and made[2, :32].isnan().all()
    assert made[7, 96:].isnan().all() and (made[7, :96] == 1).all()
    assert not made[0, 32:].isnan().any() and not made[1, :64].isnan().any()
    assert (made[3].abs() <= weight[3].abs().max()).all() and (made[3, :32] == 0).all()
    assert (made[4:7] == 1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_restored_weights_are_multiplied_like_plain_ones(build, kind):  # noqa: F811
    library = native.load(build)
    assert library is not None
    torch.manual_seed(2)
    bias = torch.randn(70).bfloat16()
    linear = to_blocks(library, Linear(torch.randn(70, 256).bfloat16(), bias=bias), CPU_WEIGHTS[kind])
    weight = linear.weight
    plain = native.plain_matrix(weight, bias)
    for rows in (*range(1, 15), 128):
        x = torch.randn(rows, 256).bfloat16()
        restored = matrix_of(linear, floats=True)
        assert restored is not None
        found = native.linear(library, restored, x, 2)
        assert torch.equal(found, native.linear(library, plain, x, 2))
        torch.testing.assert_close(linear(x).float(), found, rtol=0.01, atol=0.1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["qwen3", "qwen2", "llama", "opt", "gemma4_small"])
def test_the_model_is_that_of_the_weights_it_stands_for(family, kind, build, checkpoints):  # noqa: F811
    """In one call and in parts. With activations in bfloat16 it is as far from transformers in float32 as torch's
    operators are with those weights; with 8 bits not much further."""
    directory, twin = checkpoints(family, kind)
    expected = reference(twin, sequences_of_tokens())
    plain = load(twin, torch.bfloat16)
    usual = {schedule: error(plain, schedule, expected) for schedule in (whole, together, chunked, decode, mixed)}
    for activations, factor in (("float", 1.1), ("auto", 3)):
        model, parts = (quantised(directory, kind, activations) for _ in range(2))
        parts.ops.max_whole_rows = 0
        for schedule in usual:
            assert error(model, schedule, expected) <= factor * usual[schedule]
            assert error(parts, schedule, expected) <= factor * usual[schedule]


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_does_not_depend_on_its_neighbours(build, kind, checkpoints):  # noqa: F811
    model = quantised(checkpoints("qwen3", kind)[0], kind)
    sequences = sequences_of_tokens()
    sequences += sequences
    alone, beside = Paged(model, sequences), Paged(model, sequences)
    for row in range(len(sequences)):
        while alone.fed[row] < 2:
            alone.step([(row, 1)])
    for _ in range(2):
        beside.step([(row, 1) for row in range(len(sequences))])
    for one, other in zip(alone.finish(), beside.finish(), strict=True):
        assert torch.equal(one, other)


def test_an_engine_with_small_weights(build, checkpoints, monkeypatch):  # noqa: F811
    """Nothing of its files is left to be moved."""
    monkeypatch.setattr("ember.engine.loading.mapped.SMALL_BYTES", 0)
    monkeypatch.setattr("ember.engine.layers.linear._HUGE_PAGE", 0)
    directory, _ = checkpoints("qwen3", "int8")
    requests = [Generate(i, list(range(5, 9 + i)), greedy(6)) for i in range(3)]
    engine = make_engine(directory, dtype="auto", cpu_weights="int8")
    model = engine.runner.model
    assert model.dtype == torch.bfloat16 and isinstance(model.parts.blocks[0].attention.qkv, BlockLinear)
    assert str(directory) not in Path("/proc/self/maps").read_text()
    expected = run(engine, requests)
    assert not engine.do_chore() and isinstance(model.parts.head, BlockLinear)
    again = run(engine, requests)
    assert {key: tokens(made) for key, made in again.items()} == {key: tokens(made) for key, made in expected.items()}


def test_tokens_are_looked_up_in_the_head_they_are_tied_to(build, tmp_path):  # noqa: F811
    for tied in (True, False):
        directory = make_tiny("llama", tmp_path / str(tied), **SIZES, tie_word_embeddings=tied)
        model = quantised(directory, "int4")
        embedding = model.parts.embedding.tokens
        assert isinstance(embedding, BlockLinear) and (embedding is model.parts.head) == tied
        plain = load(directory, torch.bfloat16).parts.embedding.tokens
        assert isinstance(plain, Tensor)
        ids = torch.tensor([5, 0, len(plain) - 1, 5])
        assert torch.equal(model.parts.embedding(ids, ids), stands_for(plain, "int8")[ids])


def test_a_float32_checkpoint_becomes_small_too(build, tmp_path):  # noqa: F811
    directory = make_tiny("llama", tmp_path, **{**SIZES, "dtype": torch.float32})
    assert make_engine(directory, dtype="auto", cpu_weights="int4").runner.model.dtype == torch.bfloat16


def test_refusals_name_the_reason(build, checkpoints, tmp_path, monkeypatch):  # noqa: F811
    directory, _ = checkpoints("llama", "int8")
    with pytest.raises(ModelError, match="CPU_WEIGHTS=int8 needs DTYPE=bfloat16 or auto, and it is float32"):
        make_engine(directory, dtype="float32", cpu_weights="int8")
    odd = make_tiny("llama", tmp_path / "odd", **{**SIZES, "intermediate_size": 80})
    with pytest.raises(ModelError, match="LlamaForCausalLM, whose intermediate_size=80 is no multiple of 32"):
        make_engine(odd, dtype="bfloat16", cpu_weights="int4")
    monkeypatch.setattr(native, "load", lambda name=None: None)
    with pytest.raises(ModelError, match="cannot be used; the log says why"):
        make_engine(directory, dtype="bfloat16", cpu_weights="int8")
    monkeypatch.setattr("ember_cpu.variants.library_file", lambda name, folder: tmp_path / name)
    with pytest.raises(ModelError, match="needs the C library for CPUs"):
        make_engine(directory, dtype="bfloat16", cpu_weights="int8")


def test_weights_chosen_are_used_where_amx_would_serve_plain_ones(build, checkpoints, monkeypatch):  # noqa: F811
    monkeypatch.setattr("ember.engine.description.operator_choice.cpu_flags", lambda: frozenset({"amx_bf16"}))
    model = load(checkpoints("llama", "int8")[0], torch.bfloat16)
    assert choose_for(model).name == "torch" and "AMX" in choose_for(model).reason
    quantised(checkpoints("llama", "int8")[0], "int8")
