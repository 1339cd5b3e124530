"""Families give transformers' logits with their operations in kernels, and with torch for any one of them."""

from __future__ import annotations

import functools

import pytest
import torch
from transformers import AutoModelForCausalLM

from ember.engine.description.layouts import ORDERED_INTEGERS, SMALL_TABLES
from ember.engine.description.operator_sets import TRITON
from ember.engine.operators import triton_expansion, triton_ops
from ember.engine.operators.choose import choose
from ember.engine.operators.triton_linear import MODULES
from ember.wire import Generate
from ember_kernels.latent_pieces import upload_pieces
from ember_kernels.small_gemm import small_gemm
from ember_kernels.specialisation import device_capability
from tests.engine_core.inline import greedy, make_engine, run, tokens
from tests.engine_models.paged import Paged
from tests.engine_models.test_parity import assert_same, load, reference
from tests.engine_models.test_parity import tokens as sequences_of_tokens
from tests.engine_models.tiny import COVERING, VOCAB_SIZE, make_tiny
from tests.support.operators import use_triton

NUM_OUTPUT = 3
LENGTHS = [1, 5, 17, 30]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    root = tmp_path_factory.mktemp("triton")

    @functools.cache
    def checkpoint(variant: str):
        """A model, some sequences, and their logits as transformers computes them."""
        directory, sequences = make_tiny(variant, root / variant), sequences_of_tokens((14, 3, 9))
        return directory, sequences, reference(directory, sequences)

    return checkpoint


def check(model, sequences, expected) -> None:
    """A prompt and a part of another one; decodes beside the rest of it; decodes alone."""
    paged = Paged(model, sequences)
    paged.step([(0, 12), (2, 4)])
    paged.step([(1, 1), (0, 1), (2, 4)])
    paged.step([(0, 1), (1, 1), (2, 1)])
    found = paged.finish()
    assert_same(found, [theirs[: len(ours)] for ours, theirs in zip(found, expected, strict=True)])


@pytest.mark.parametrize("variant", COVERING)
def test_logits_equal_transformers(variant, checkpoints):
    directory, sequences, expected = checkpoints(variant)
    model = load(directory)
    use_triton(model)
    # The kernels of experts take 16-bit numbers; in float32 torch computes experts, and the host reads their counts.
    own_attention = not {"attend", "attend_latents"} & TRITON.lacking(model.config).keys()
    assert model.ops.is_recordable == (own_attention and model.config.experts is None)
    check(model, sequences, expected)


@pytest.mark.parametrize("variant", ["deepseek_v2", "youtu", "glm4_moe_lite", "mistral4"])
def test_long_chunks_with_expanded_keys_equal_transformers(variant, checkpoints, monkeypatch):
    """Beside decodes and short chunks, and of contexts in several pieces."""
    directory, sequences, expected = checkpoints(variant)
    monkeypatch.setattr(triton_expansion, "expands", lambda sizes, queries: queries >= 4)
    monkeypatch.setattr(triton_expansion, "keys_at_once", lambda *sizes: 11)
    made = []
    monkeypatch.setattr(
        triton_expansion, "upload_pieces", lambda *given: made.append(upload_pieces(*given)) or made[-1]
    )
    model = load(directory)
    use_triton(model)
    paged = Paged(model, sequences)
    paged.step([(1, 2), (0, 5)])
    paged.step([(1, 1), (0, 8), (2, 9)])
    found = paged.finish()
    assert [[piece.is_split for piece in pieces] for pieces in made] == [[False], [True] * 2]
    assert_same(found, [theirs[: len(ours)] for ours, theirs in zip(found, expected, strict=True)])


ATTENTION = ("add_norm", "place_heads", "attend", "gate")
OPERATIONS_OF = {  # variants with the operations that each of them has in kernels
    "qwen3": ATTENTION,
    "opt_post_norm": ATTENTION,
    "deepseek_v2": ("place_latents", "attend_latents"),
    "qwen3_5": ("convolve", "delta_rule", "gated_norm"),
    "mamba2": ("convolve", "scan", "gated_norm"),
    "falcon_mamba": ("selective_scan",),
}


@pytest.mark.parametrize(
    ("variant", "operation"), [(variant, name) for variant, names in OPERATIONS_OF.items() for name in names]
)
def test_torch_stands_in_for_any_operation(variant, operation, checkpoints):
    directory, sequences, expected = checkpoints(variant)
    model = load(directory)
    lacking = {operation} | {other for other, needed in TRITON.needs.items() if needed == operation}
    use_triton(model, dict.fromkeys(lacking, "a test"))
    for name in OPERATIONS_OF[variant]:
        # Where torch attends, `place_heads` of the kernels may stand: they write torch's heads to the cache.
        only_written = lacking == {"place_heads"} and name == "place_heads"
        is_torch = getattr(model.ops, name) == getattr(model.ops.torch_ops, name)
        assert is_torch == (name in lacking and not only_written), name
    check(model, sequences, expected)


def test_every_operation_in_kernels_is_once_left_to_torch():
    assert set(TRITON.features) - {"experts"} == set().union(*OPERATIONS_OF.values())  # torch's experts: float32


@pytest.mark.parametrize("variant", ["qwen2_window", "llama"])
def test_products_of_few_rows_are_computed_where_they_were_measured_to_be_faster(variant, checkpoints, monkeypatch):
    """qwen2_window has biases. Products that are not in the table, or have more rows than it says, are torch's."""
    directory, sequences, _ = checkpoints(variant)
    model = load(directory, dtype=torch.bfloat16)
    attention = model.parts.blocks[0].attention
    n, k = attention.qkv.weight.shape
    monkeypatch.setitem(triton_ops.MEASURED_GAINS, device_capability(model.device), {(n, k): 4})
    seen = []

    def spied(x, weight, bias):
        seen.append((*x.shape, *weight.shape, bias is not None))
        product = small_gemm(x, weight, bias)
        torch.testing.assert_close(product, torch.nn.functional.linear(x, weight, bias), rtol=2e-2, atol=2e-2)
        return product

    monkeypatch.setattr(triton_ops, "small_gemm", spied)
    use_triton(model)
    paged = Paged(model, sequences)
    paged.step([(0, 12), (2, 4)])
    assert not seen
    paged.step([(0, 1), (1, 1), (2, 1)])
    assert seen == [(3, k, n, k, attention.qkv.bias is not None)] * len(model.parts.blocks)
    paged.finish()


@pytest.mark.parametrize("family", ["qwen2_window", "opt"])
def test_greedy_equals_transformers(family, tmp_path):
    directory = make_tiny(family, tmp_path, num_hidden_layers=2)
    prompts = [[(7 * i + 3 * j) % (VOCAB_SIZE - 10) + 6 for j in range(length)] for i, length in enumerate(LENGTHS)]
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    expected = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        options = {"max_new_tokens": NUM_OUTPUT, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        with torch.inference_mode():
            generated = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
        expected.append(generated[0, len(prompt) :].tolist())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    engine = make_engine(directory, device=device, max_num_batched_tokens=20)  # chunks and decodes in one step
    if device == "cpu":
        use_triton(engine.runner.model)
    for _ in range(2):  # the second time with a cached prefix
        outputs = run(engine, [Generate(i, prompt, greedy(NUM_OUTPUT)) for i, prompt in enumerate(prompts)])
        assert [tokens(outputs[i, 0]) for i in range(len(prompts))] == expected


def test_the_choice_for_a_gpu_names_what_torch_computes(checkpoints):
    """Decided for a device that need not be there: the operators hold no memory of it until they are used."""
    model = load(checkpoints("opt_post_norm")[0])
    choice = choose(model.config, model.parts, torch.float32, torch.device("cuda"))
    assert choice.name == "triton" and choice.reason == "a GPU"


@pytest.mark.parametrize("family", ["qwen2_moe", "glm4_moe", "llama4"])
def test_experts_in_kernels_are_those_of_torch(family, checkpoints):
    """In float16, which the kernels take: a chunk of a prompt is sorted by expert, decodes gather their experts."""
    directory, sequences, _ = checkpoints(family)
    found = []
    for kernels in (True, False):
        model = load(directory, torch.float16)
        use_triton(model, None if kernels else {"experts": "a test"})
        assert model.ops.is_recordable == (kernels and "attend" not in TRITON.lacking(model.config))
        paged = Paged(model, sequences)
        paged.step([(0, 12), (2, 4)])
        paged.step([(1, 1), (0, 1), (2, 1)])
        found.append(paged.finish())
    assert_same(*found, tolerance=0.02)


@pytest.mark.parametrize("variant", ["llama", "qwen3", "gptj", "gemma2", "opt"])
def test_a_float8_cache_in_kernels_is_that_of_torch(variant, checkpoints):
    directory, sequences, _ = checkpoints(variant)
    found = []
    for is_triton in (False, True):
        model = load(directory)
        if is_triton:
            use_triton(model)
        paged = Paged(model, sequences, cache_scales=(0.5, 0.25))
        paged.step([(0, 12), (2, 4)])
        paged.step([(1, 1), (0, 1), (2, 4)])
        paged.step([(0, 1), (1, 1), (2, 1)])
        found.append(paged.finish())
    # A number between two neighbours of float8 may be rounded to either, as sums before it differ in their order.
    assert_same(found[1], found[0], 2e-2)


def test_every_layout_with_a_kernel_is_declared() -> None:
    assert TRITON.layouts == {"Linear", ORDERED_INTEGERS, SMALL_TABLES, *(layout.__name__ for layout in MODULES)}
