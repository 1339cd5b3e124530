"""The C library's forward pass against transformers in float32, in every mixture of rows, for every build of it."""

from __future__ import annotations

import ctypes
import gc
import mmap
import shutil
from functools import cache
from math import inf, pi
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ember.engine.core.chores import Chores, settling
from ember.engine.description.operator_sets import NATIVE
from ember.engine.description.read_config import load_config
from ember.engine.layers.mlp import MLP
from ember.engine.loading.load import load_decoder
from ember.engine.models.decoder import Decoder
from ember.engine.operators.experts import compute_mlp
from ember.engine.operators.native_ops import NativeOperators
from ember.wire import Generate
from ember_cpu import library as native
from tests.engine_core.inline import greedy, make_engine, run, tokens
from tests.engine_models.paged import Paged
from tests.engine_models.test_parity import chunked, decode, load, mixed, reference, together, whole
from tests.engine_models.test_parity import tokens as sequences_of_tokens
from tests.engine_models.tiny import make_tiny
from tests.support.operators import choose_for, use_native

FAMILIES = [
    "llama",
    "llama_mha",
    "llama3",
    "mistral_window",
    "ministral",
    "qwen2",
    "qwen2_window",
    "qwen3",
    "qwen3_bias",
    "smollm3_window",
    "hunyuan_dense",
    "glm",
    "ministral3",
    "olmo3",
    "granite",
    "gemma2",
    "gemma3",
    "hyperclovax",
    "nanochat",
    "phi",
    "opt",
    "opt_post_norm",
]
SIZES: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 96, "head_dim": 32}  # registers are 32 elements wide
BUILDS = [variant.name for variant in native.VARIANTS]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    root = tmp_path_factory.mktemp("native")
    made: dict[str, tuple[Path, list[Tensor]]] = {}

    def checkpoint(family: str) -> tuple[Path, list[Tensor]]:
        """A model whose weights are bfloat16, and its logits as transformers computes them in float32."""
        if family not in made:
            sizes = {"hidden_size": 128, "word_embed_proj_dim": 64} if family.startswith("opt") else SIZES
            directory = make_tiny(family, root / family, dtype=torch.bfloat16, **sizes)
            made[family] = directory, reference(directory, sequences_of_tokens())
        return made[family]

    return checkpoint


@pytest.fixture(scope="module")
def usual_errors(checkpoints):
    """How far torch's operators are from float32 in bfloat16: the same for every build."""

    @cache
    def errors(family: str) -> dict[Any, float]:
        directory, expected = checkpoints(family)
        plain = load(directory, torch.bfloat16)
        return {schedule: error(plain, schedule, expected) for schedule in (whole, together, chunked, decode, mixed)}

    return errors


@pytest.fixture(params=BUILDS)
def build(request, monkeypatch):
    if native.load(request.param) is None:
        pytest.skip(f"this machine cannot run {request.param}")
    chosen = native.load(request.param)
    monkeypatch.setattr(native, "load", lambda name=None: chosen)
    monkeypatch.setattr(
        "ember.engine.description.operator_choice.cpu_flags", frozenset
    )  # whatever oneDNN would be better at
    monkeypatch.setattr("ember.engine.operators.native_ops.cpu_has_bfloat16", lambda: False)
    return request.param


def native_model(directory: Path, max_rows: int = native.MAX_ROWS) -> Decoder:
    model = load(directory, torch.bfloat16)
    choice = choose_for(model)
    assert choice.name == "native" and isinstance(choice.ops, NativeOperators)
    choice.ops.max_whole_rows = min(max_rows, choice.ops.max_whole_rows)
    model.ops = choice.ops
    return model


def error(model: Decoder, schedule, expected: list[Tensor]) -> float:
    """The differences' spread over that of the logits."""
    torch.manual_seed(3)
    paged = Paged(model, sequences_of_tokens())
    schedule(paged)
    found = paged.finish()
    theirs = torch.cat([logits[: len(ours)] for ours, logits in zip(found, expected, strict=True)])
    return float((torch.cat(found) - theirs).square().mean().sqrt() / theirs.std())


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_transformers(family, build, checkpoints, usual_errors, monkeypatch):
    """Not further from float32 than torch's operators in bfloat16 are: in one call; in parts, with the library's
    attention for all, for some and only for decodes, and with its products or torch's."""
    directory, expected = checkpoints(family)
    model, parts = native_model(directory), native_model(directory, max_rows=0)
    for schedule, usual in usual_errors(family).items():
        assert error(model, schedule, expected) <= 1.1 * usual
        for short, parts.ops.max_product_rows in ((512, inf), (20, inf), (0, inf), (20, 0), (20, 9)):
            monkeypatch.setattr("ember.engine.operators.native_ops.SHORT_CONTEXT", short)
            assert error(parts, schedule, expected) <= 1.1 * usual


EXPERTS = {"qwen3_moe": {}, "qwen2_moe": {"shared_expert_intermediate_size": 96}, "glm4_moe": {}}


@pytest.mark.parametrize("family", EXPERTS)
def test_experts_are_computed_in_one_call(family, build, tmp_path):
    """Where rounding chooses another expert, errors are large, in any path: of all rows the call may be as far off as
    torch's operators, and no row depends on the others."""
    sizes = {"moe_intermediate_size": 64, **EXPERTS[family], **SIZES}
    directory = make_tiny(family, tmp_path, dtype=torch.bfloat16, **sizes)
    expected = reference(directory, sequences_of_tokens())
    usual = error(load(directory, torch.bfloat16), mixed, expected)
    model = native_model(directory)
    assert model.ops.max_whole_rows == native.MAX_ROWS
    assert error(model, mixed, expected) <= 1.5 * usual
    alone, together_ = Paged(model, sequences_of_tokens((7, 7))), Paged(model, sequences_of_tokens((7, 7)))
    for row in (0, 1):
        for _ in range(7):
            alone.step([(row, 1)])
    together_.step([(0, 7), (1, 3)])
    together_.step([(1, 4)])
    for one, other in zip(alone.finish(), together_.finish(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("operation", NATIVE.features)
@pytest.mark.parametrize("family", ["qwen3", "qwen2_window"])
def test_torch_stands_in_for_any_operation(family, operation, build, checkpoints, usual_errors):
    directory, expected = checkpoints(family)
    model = load(directory, torch.bfloat16)
    ops = use_native(model, {operation: "a test"})
    for name in NATIVE.features:
        assert (getattr(ops, name) == getattr(ops.torch_ops, name)) == (name == operation)
    for schedule in (together, mixed):
        assert error(model, schedule, expected) <= 1.1 * usual_errors(family)[schedule]


@pytest.mark.parametrize("family", ["llama_mha", "mistral_window", "qwen3"])
def test_one_call_computes_what_the_loop_does(family, build, checkpoints, usual_errors):
    """The call keeps sums in float32 that the loop's operations round to bfloat16. So the two differ by rounding, by no
    more than bfloat16 differs from float32."""
    directory, _ = checkpoints(family)
    found = []
    for max_rows in (native.MAX_ROWS, 0):
        torch.manual_seed(3)
        paged = Paged(native_model(directory, max_rows), sequences_of_tokens())
        mixed(paged)
        found.append(torch.cat(paged.finish()))
    in_one, in_parts = found
    difference = (in_one - in_parts).square().mean().sqrt() / in_parts.std()
    assert 0 < difference < usual_errors(family)[mixed]


def test_a_row_does_not_depend_on_its_neighbours(build, checkpoints):
    directory, _ = checkpoints("qwen3")
    model = native_model(directory)
    sequences = sequences_of_tokens()
    alone, beside = Paged(model, sequences), Paged(model, sequences)
    for row in range(len(sequences)):
        while alone.fed[row] < 2:
            alone.step([(row, 1)])
    beside.step([(row, 1) for row in range(len(sequences))])
    beside.step([(row, 1) for row in reversed(range(len(sequences)))])
    for one, other in zip(alone.finish(), beside.finish(), strict=True):
        assert torch.equal(one, other)


def test_more_rows_of_logits_than_one_call_takes(build, checkpoints):
    model = native_model(checkpoints("llama")[0])
    hidden = torch.randn(2 * native.MAX_ROWS + 3, 128).bfloat16()
    expected = hidden.float() @ model.parts.head.weight.float().T
    torch.testing.assert_close(model.logits(hidden), expected, rtol=1e-3, atol=1e-3)


def test_an_mlp_of_more_rows_than_it_computes_at_a_time(build, checkpoints, monkeypatch):
    directory, _ = checkpoints("qwen3")
    model, step = native_model(directory), Any
    mlp = model.parts.blocks[0].mlp
    assert isinstance(mlp, MLP) and isinstance(model.ops, NativeOperators)
    hidden = torch.randn(int(model.ops.max_mlp_rows) + 9, model.config.hidden_size, dtype=torch.bfloat16)
    parts = compute_mlp(model.ops, mlp, hidden, step)
    monkeypatch.setattr(NativeOperators, "max_mlp_rows", inf)
    assert parts.equal(compute_mlp(model.ops, mlp, hidden, step))


def test_weights_that_move_are_found_again(build, checkpoints, monkeypatch):
    """Chores take mapped weights out of their files, between the steps of running requests."""
    monkeypatch.setattr("ember.engine.loading.mapped.SMALL_BYTES", 0)
    monkeypatch.setattr("ember.engine.layers.linear._HUGE_PAGE", 0)
    directory, _ = checkpoints("qwen2")
    requests = [Generate(i, list(range(5, 9 + i)), greedy(6)) for i in range(3)]
    expected = run(make_engine(directory, dtype="bfloat16"), requests)
    engine = make_engine(directory, dtype="bfloat16")
    assert isinstance(engine.runner.model.ops, NativeOperators)
    assert str(directory) in Path("/proc/self/maps").read_text()
    outputs = {}
    for request in requests:
        engine.add(request)
    more = True
    while engine.has_work:
        for output in engine.step():
            outputs.setdefault((output.request_id, output.index), []).append(output)
        more = more and engine.do_chore()
    gc.collect()
    assert not more and str(directory) not in Path("/proc/self/maps").read_text()
    assert {key: tokens(made) for key, made in outputs.items()} == {key: tokens(made) for key, made in expected.items()}


def test_not_a_number_fails_its_request_alone(build, checkpoints):
    directory, _ = checkpoints("qwen3")
    engine = make_engine(directory, dtype="bfloat16", enable_prefix_caching=False)
    engine.runner.model.parts.embedding.tokens = engine.runner.model.parts.embedding.tokens.clone()
    engine.runner.model.parts.embedding.tokens[77] = torch.nan  # the head keeps its own
    outputs = run(engine, [Generate(1, [5, 77, 6], greedy(4)), Generate(2, [5, 8, 6], greedy(4))])
    assert "NaN" in (outputs[1, 0][-1].error or "")
    assert len(tokens(outputs[2, 0])) == 4


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU by way of tanh, exact also where tanh is close to -1."""
    wide = x.double()
    inner = -2 * (2 / pi) ** 0.5 * (wide + 0.044715 * wide**3)
    return (wide / (1 + inner.clamp(max=500).exp())).float()


def test_gates_of_any_size(build):
    """In prompts' own call; the one of a step is the same arithmetic (`exponential`)."""
    library = native.load(build)
    assert library is not None
    gate = torch.cat([torch.linspace(-1e4, 1e4, 4001), torch.linspace(-200.0, 200.0, 4001)]).bfloat16()
    x = torch.stack((gate, torch.ones_like(gate))).flatten()[None].contiguous()
    out = torch.empty(1, len(gate), dtype=torch.bfloat16)
    expected = {"silu": torch.nn.functional.silu(gate.float()), "gelu_tanh": gelu_tanh(gate.float())}
    for kind, name in enumerate(native.ACTIVATIONS):
        x[0, :2] = 1.0
        library.ember_gate(x.data_ptr(), out.data_ptr(), 1, len(gate), kind, 2)
        torch.testing.assert_close(out[0, 2:].float(), expected[name][2:], rtol=1e-2, atol=1e-30)
        x[0, :2] = torch.nan
        library.ember_gate(x.data_ptr(), out.data_ptr(), 1, len(gate), kind, 2)
        assert out[0, :2].isnan().all() and not out[0, 2:].isnan().any()


def test_large_gates_in_a_step(build, tmp_path):
    """Weights so large that gates leave the range of float32's exponential."""
    import safetensors.torch

    directory = make_tiny("llama", tmp_path, dtype=torch.bfloat16, **{**SIZES, "num_hidden_layers": 1})
    file = directory / "model.safetensors"
    weights = safetensors.torch.load_file(file)
    weights["model.layers.0.mlp.gate_proj.weight"] *= 200
    safetensors.torch.save_file(weights, file, metadata={"format": "pt"})
    expected = reference(directory, sequences_of_tokens())
    usual = error(load(directory, torch.bfloat16), decode, expected)
    assert error(native_model(directory), decode, expected) <= 1.1 * usual


def test_a_chore_that_fails_leaves_a_whole_model(build, checkpoints, monkeypatch, caplog):
    """Memory runs out between two matrices of a layer whose parts are mapped alone."""
    monkeypatch.setattr("ember.engine.loading.mapped.SMALL_BYTES", 0)
    monkeypatch.setattr("ember.engine.loading.mapped._MAX_WASTE", 0)
    monkeypatch.setattr("ember.engine.layers.linear._HUGE_PAGE", 0)
    directory, expected = checkpoints("llama")
    loaded = load_decoder(directory, load_config(directory), dtype=torch.bfloat16, device=torch.device("cpu"))
    model, pages = loaded.decoder, loaded.pages
    model.ops = choose_for(model).ops
    assert isinstance(model.ops, NativeOperators) and pages is not None
    chores = Chores([settling(model, pages)])
    real, calls = mmap.mmap, 0

    def fail_second(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError("no memory in a test")
        return real(*arguments, **options)

    usual = error(model, decode, expected)
    monkeypatch.setattr("ember.engine.layers.linear.mmap.mmap", fail_second)
    assert not chores.do_next(is_idle=True)
    assert "deferred boot work failed and was skipped: moving the weights: OSError: no memory" in caplog.text
    gc.collect()
    assert error(model, decode, expected) == usual


def test_structures_are_those_of_the_library(build):
    library = native.load(build)
    assert library is not None
    kinds = (native.Matrix, native.Layer, native.Model, native.Step, native.Experts, native.Texts)
    sizes = (ctypes.c_int64 * len(kinds)).in_dll(library, "ember_sizes")
    assert list(sizes) == [ctypes.sizeof(kind) for kind in kinds]


def test_a_library_of_another_source_is_not_used(build, monkeypatch, tmp_path):
    monkeypatch.undo()
    for path in (*native.HERE.glob("*.[ch]"), native.HERE / f"decoder_{build}.so"):
        shutil.copy(path, tmp_path)
    monkeypatch.setattr(native, "HERE", tmp_path)
    assert native.load.__wrapped__(build) is not None
    for name in ("matrix.h", "decoder.c"):
        text = (tmp_path / name).read_text()
        (tmp_path / name).write_text(text + "/* changed */")
        assert native.load.__wrapped__(build) is None
        (tmp_path / name).write_text(text)
    variant = next(variant for variant in native.VARIANTS if variant.name == build)
    assert variant.fault(tmp_path) is None
    file = tmp_path / f"decoder_{build}.so"
    whole = file.read_bytes()
    for size in (0, 10, 5000, len(whole) - 1):  # loaded, it would end the process
        file.unlink()  # the one that is loaded stays whole
        file.write_bytes(whole[:size])
        assert native.load.__wrapped__(build) is None
        assert variant.fault(tmp_path) == f"{file.name} is {'not a 64-bit ELF library' if size < 64 else 'truncated'}"
    file.unlink()
    assert variant.fault(tmp_path) == f"{file.name} does not exist"


def test_what_it_does_not_serve_stays_with_torch(checkpoints, tmp_path, monkeypatch):
    choice = choose_for(load(make_tiny("opt", tmp_path / "opt"), torch.bfloat16))
    assert choice.name == "native" and "torch computes gate: activation=relu" in choice.reason
    choice = choose_for(load(make_tiny("llama", tmp_path / "odd"), torch.bfloat16))
    assert choice.name == "torch" and "intermediate_size=112 is no multiple of 32" in choice.reason
    directory, _ = checkpoints("llama")
    assert choose_for(load(directory, torch.float32)).name == "torch"
    monkeypatch.setattr("ember.engine.description.operator_choice.cpu_flags", lambda: frozenset({"amx_bf16"}))
    assert choose_for(load(directory, torch.bfloat16)).name == "torch"


def test_sixteen_bits_stay_sixteen_where_the_library_serves(checkpoints, tmp_path, monkeypatch):
    """On a CPU that does not multiply bfloat16, too; where torch would have to, they become float32."""
    monkeypatch.setattr("ember.engine.loading.dtype.cpu_has_bfloat16", lambda: False)
    dtype = lambda directory: make_engine(directory, dtype="auto").runner.model.dtype  # noqa: E731
    assert dtype(checkpoints("llama")[0]) == torch.bfloat16
    assert dtype(make_tiny("opt", tmp_path / "opt", dtype=torch.bfloat16)) == torch.float32
    assert dtype(make_tiny("llama", tmp_path / "float32", **SIZES)) == torch.float32
    monkeypatch.setattr("ember_cpu.variants.library_file", lambda name, folder: tmp_path / name)
    assert dtype(checkpoints("llama")[0]) == torch.float32


def test_without_the_library_torch_serves(checkpoints, monkeypatch, tmp_path):
    monkeypatch.setattr(native, "HERE", tmp_path)
    native.load.cache_clear()
    assert native.load() is None
    (tmp_path / f"decoder_{BUILDS[-1]}.so").write_bytes(b"no library")
    native.load.cache_clear()
    assert native.load() is None
    native.load.cache_clear()
    choice = choose_for(load(checkpoints("llama")[0], torch.bfloat16))
    assert choice.name == "torch" and choice.warning is not None and "without the C library" in choice.warning
    native.load.cache_clear()
