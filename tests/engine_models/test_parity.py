"""Every family gives the logits that transformers gives, however its tokens are cut into steps."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ember.engine.core.chores import settle_weights
from ember.engine.description.read_config import load_config
from ember.engine.loading import mapped
from ember.engine.loading.load import load_decoder
from ember.engine.models.decoder import Decoder
from ember.engine.operators import torch_latent, torch_plan
from tests.engine_models.paged import Paged
from tests.engine_models.tiny import VARIANTS, VOCAB_SIZE, make_tiny

LENGTHS = (37, 5, 23, 2, 61, 18)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("tiny")

    @functools.cache
    def checkpoint(variant: str) -> Path:
        return make_tiny(variant, root / variant)

    return checkpoint


def load(directory: Path, dtype: torch.dtype = torch.float32, packed: bool = False) -> Decoder:
    loaded = load_decoder(directory, load_config(directory), dtype=dtype, device=torch.device("cpu"))
    if packed:
        for _ in settle_weights(loaded.decoder, loaded.pages):
            pass
    return loaded.decoder


def reference(directory: Path, sequences: list[Tensor], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """transformers' logits of whole sequences, [tokens, vocab_size] each."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()
    with torch.inference_mode():
        return [model(sequence[None]).logits[0].float() for sequence in sequences]


def tokens(lengths: tuple[int, ...] = LENGTHS) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(3, VOCAB_SIZE, (length,), generator=generator) for length in lengths]


def assert_same(found: list[Tensor], expected: list[Tensor], tolerance: float = 2e-5) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert not ours.isnan().any()
        error = (ours - theirs).abs().max() / theirs.abs().max()
        assert error < tolerance


def whole(paged: Paged) -> None:
    """Each prompt alone, in one step."""
    for row, length in enumerate(LENGTHS):
        paged.step([(row, length)])


def together(paged: Paged) -> None:
    """All prompts in one batch."""
    paged.step(enumerate(LENGTHS))


def chunked(paged: Paged) -> None:
    """All prompts in chunks of 7, side by side: few queries after a prefix."""
    while rest := [(row, min(7, n - paged.fed[row])) for row, n in enumerate(LENGTHS) if paged.fed[row] < n]:
        paged.step(rest)


def long_chunks(paged: Paged) -> None:
    """Chunks of 20: many queries after a prefix."""
    while rest := [(row, min(20, n - paged.fed[row])) for row, n in enumerate(LENGTHS) if paged.fed[row] < n]:
        paged.step(rest)


def decode(paged: Paged) -> None:
    """One token a step from the first token on: decodes of equal, then of different contexts."""
    while rest := [(row, 1) for row, n in enumerate(LENGTHS) if paged.fed[row] < n]:
        paged.step(rest)


def mixed(paged: Paged) -> None:
    """Decodes, a fresh prompt and a chunk after a prefix in the same batches, in an order that interleaves them."""
    paged.step([(0, 30), (2, 20)])
    paged.step([(2, 1), (4, 40), (0, 1), (1, 4), (3, 1)])
    paged.step([(5, 10), (0, 2), (4, 1), (1, 1), (2, 1)])
    paged.step([(4, 19), (3, 1), (5, 1), (0, 1), (2, 1)])
    paged.step([(0, 3), (4, 1), (5, 7)])


@pytest.mark.parametrize("variant", ["llama_mha", "qwen3", "opt_post_norm"])
def test_logits_equal_transformers_on_mapped_weights(
    variant: str, checkpoints: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Matrices used where they lie in the file, in parts; some layers already packed, some not."""
    monkeypatch.setattr(mapped, "SMALL_BYTES", 0)
    directory, sequences = checkpoints(variant), tokens()
    loaded = load_decoder(directory, load_config(directory), dtype=torch.float32, device=torch.device("cpu"))
    model = loaded.decoder
    assert len(model.parts.blocks[-1].attention.qkv.rows) == 3
    next(settle_weights(model, loaded.pages))
    paged = Paged(model, sequences)
    mixed(paged)
    found, expected = paged.finish(), reference(directory, sequences)
    assert_same(found, [theirs[: len(ours)] for ours, theirs in zip(found, expected, strict=True)])


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_transformers(variant: str, checkpoints: Any) -> None:
    directory, sequences = checkpoints(variant), tokens()
    expected = reference(directory, sequences)
    for packed in (False, True):
        model = load(directory, packed=packed)
        for schedule in (whole, together, chunked, long_chunks, decode, mixed):
            torch.manual_seed(3)
            paged = Paged(model, sequences)
            schedule(paged)
            found = paged.finish()
            seen = [theirs[: len(ours)] for ours, theirs in zip(found, expected, strict=True)]
            # transformers' own error with states, in float32 against float64, is 5e-5 here.
            assert_same(found, seen, 2e-5 if not paged.has_states else 2e-4)
            if packed and schedule is together:
                break


@pytest.mark.parametrize("variant", ["llama", "mistral_window", "llama4", "gemma2", "gpt_oss", "mpt", "deepseek_v2"])
def test_a_single_query_is_left_of_a_chunk(variant: str, checkpoints: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of one query more than a masked problem may have, with soft caps, sinks and biases too."""
    for module, name in (
        (torch_plan, "MAX_QUERIES"),
        (torch_plan, "_MAX_SCORED_QUERIES"),
        (torch_latent, "MAX_QUERIES"),
    ):
        monkeypatch.setattr(module, name, 20)
    directory, sequences = checkpoints(variant), tokens()
    paged = Paged(load(directory), sequences)
    paged.step([(0, 5), (4, 20), (2, 1), (3, 1)])
    paged.step([(0, 21), (4, 21), (2, 21), (1, 5), (5, 1)])
    found, expected = paged.finish(), reference(directory, sequences)
    assert_same(found, [theirs[: len(ours)] for ours, theirs in zip(found, expected, strict=True)])


@pytest.mark.parametrize("variant", ["llama", "mistral_window"])
@pytest.mark.parametrize("scattered", [False, True])
def test_long_contexts_in_adjacent_and_in_scattered_pages(variant: str, scattered: bool, tmp_path: Path) -> None:
    """Past the length at which adjacent pages are read in place, with windows that begin inside a page."""
    overrides: dict[str, Any] = {"max_position_embeddings": 2048}
    if variant == "mistral_window":
        overrides["sliding_window"] = 603
    directory = make_tiny(variant, tmp_path, **overrides)
    sequences = tokens((1100, 620, 90))
    paged = Paged(load(directory), sequences, scattered=scattered, block_size=16)
    paged.step([(0, 400), (2, 80)])
    paged.step([(0, 650), (1, 300)])
    paged.step([(1, 310), (0, 1), (2, 1)])
    for _ in range(4):
        paged.step([(0, 1), (1, 1), (2, 1)])
    paged.step([(0, 45), (1, 6), (2, 5)])
    assert_same(paged.finish(), reference(directory, sequences))


BFLOAT16 = [
    "llama",
    "qwen3_5",
    "llama_mha",
    "qwen3",
    "gemma2",
    "gemma3",
    "gemma4",
    "gemma4_small",
    "gemma4_moe",
    "opt",
    "apertus",
    "cohere_norm",
    "glm4",
    "granite",
    "olmo3",
    "phi",
    "gpt_neox",
    "falcon_alibi",
    "bloom",
]


@pytest.mark.parametrize("variant", BFLOAT16)
@pytest.mark.parametrize("packed", [False, True])
def test_bfloat16_is_close(variant: str, packed: bool, checkpoints: Any) -> None:
    """bfloat16 has no exact answer: against float32 we must not be further off than transformers, give or take."""
    directory, sequences = checkpoints(variant), tokens((40, 25))
    exact = reference(directory, sequences)
    theirs = reference(directory, sequences, torch.bfloat16)
    paged = Paged(load(directory, torch.bfloat16, packed), sequences)
    paged.step([(0, 30), (1, 20)])
    for _ in range(5):
        paged.step([(0, 1), (1, 1)])
    paged.step([(0, 5)])
    for ours, true, other in zip(paged.finish(), exact, theirs, strict=True):
        assert (ours - true).pow(2).mean() < 1.5 * (other - true).pow(2).mean()


def test_no_tokens_wanted_gives_no_logits(checkpoints: Any) -> None:
    model = load(checkpoints("llama"), packed=True)
    assert model.logits(torch.empty(0, model.config.hidden_size)).shape == (0, VOCAB_SIZE)


def test_parameters_and_bytes_are_counted(checkpoints: Any) -> None:
    from transformers import AutoModelForCausalLM

    for variant in ("llama", "qwen3", "opt_post_norm"):
        theirs = AutoModelForCausalLM.from_pretrained(checkpoints(variant))
        ours = load(checkpoints(variant))
        assert ours.num_parameters == theirs.num_parameters()
        assert ours.weight_bytes == 4 * ours.num_parameters
