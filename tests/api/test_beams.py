"""Beam search: the same hypotheses as transformers' on random weights in float32, and what it shows of them."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from ember.front.api.beams import BeamOptions, BeamSearch
from ember.wire import SamplingParams, SequenceOutput
from tests.api.fakes import VOCAB_SIZE as SERVED_VOCAB_SIZE
from tests.api.fakes import Deployment, make_tokenizer
from tests.engine_models.tiny import VOCAB_SIZE, make_tiny
from tests.support.inline_engine import InlineEngine

EOS = list(range(2, 18))  # many, so that hypotheses end at many lengths
MAX_TOKENS = 10


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("llama", tmp_path_factory.mktemp("llama"), eos_token_id=EOS, seed=3, initializer_range=0.12)


@pytest.fixture(scope="module")
def engine(directory: Path) -> InlineEngine:
    return InlineEngine(directory)


@pytest.fixture(scope="module")
def reference(directory: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def search(engine: InlineEngine, prompt: list[int], options: BeamOptions, **sampling: Any) -> list[SequenceOutput]:
    params = SamplingParams(**{"max_tokens": MAX_TOKENS, "n": options.width, **sampling})

    async def run() -> list[SequenceOutput]:
        async with BeamSearch(engine, prompt, params, options) as beams:
            return [output async for outputs in beams for output in outputs]

    outputs = asyncio.run(run())
    engine.check_empty()
    return outputs


def expected(reference: Any, prompt: list[int], options: BeamOptions, **arguments: Any) -> list[list[int]]:
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        found = reference.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            num_beams=options.width,
            num_return_sequences=options.width,
            length_penalty=options.length_penalty,
            early_stopping=options.early_stopping,
            pad_token_id=0,
            **{"max_new_tokens": MAX_TOKENS, "eos_token_id": EOS, **arguments},
        )
    return [_until_end(sequence[len(prompt) :].tolist(), arguments.get("eos_token_id", EOS)) for sequence in found]


def _until_end(token_ids: list[int], ends: list[int] | None) -> list[int]:
    for position, token_id in enumerate(token_ids):
        if ends and token_id in ends:
            return token_ids[: position + 1]
    return token_ids


OPTIONS = [
    BeamOptions(1),
    BeamOptions(2, early_stopping=True),
    BeamOptions(3),
    BeamOptions(4, 0.0, "never"),
    BeamOptions(4, 2.0, "never"),
    BeamOptions(4, -1.0, "never"),
    BeamOptions(5, -1.0),
    BeamOptions(5, 2.0),
    BeamOptions(6, 0.5, True),
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_hypotheses_are_those_of_transformers(engine: InlineEngine, reference: Any, options: BeamOptions) -> None:
    rng = random.Random(str(options))
    lengths = set()
    for length in (1, 9, 30):
        prompt = [rng.randrange(18, VOCAB_SIZE) for _ in range(length)]
        outputs = search(engine, prompt, options)
        assert [output.index for output in outputs] == list(range(options.width))
        assert [output.token_ids for output in outputs] == expected(reference, prompt, options)
        for output in outputs:
            is_ended = output.token_ids[-1] in EOS
            assert output.finish_reason == ("stop" if is_ended else "length")
            assert output.stop_reason == (output.token_ids[-1] if is_ended else None)
            lengths.add(len(output.token_ids))
    if options.width > 1 and options.length_penalty <= 1:
        assert len(lengths) > 1, "the weights end hypotheses at different lengths"


def test_without_an_end_all_have_full_length(engine: InlineEngine, reference: Any) -> None:
    options = BeamOptions(3)
    outputs = search(engine, [20, 30, 40], options, ignore_eos=True)
    assert [output.token_ids for output in outputs] == expected(reference, [20, 30, 40], options, eos_token_id=None)
    assert all(output.finish_reason == "length" and len(output.token_ids) == MAX_TOKENS for output in outputs)


def test_min_tokens_and_stop_ids(engine: InlineEngine, reference: Any) -> None:
    options = BeamOptions(4)
    outputs = search(engine, [25, 36], options, min_tokens=6)
    found = expected(reference, [25, 36], options, min_new_tokens=6)
    assert [output.token_ids for output in outputs] == found
    assert min(len(tokens) for tokens in found) > 6
    plain = search(engine, [25, 36], options, ignore_eos=True)
    ends = [plain[0].token_ids[3], plain[1].token_ids[5]]
    stopped = search(engine, [25, 36], options, ignore_eos=True, stop_token_ids=ends)
    assert [output.token_ids for output in stopped] == expected(reference, [25, 36], options, eos_token_id=ends)


def test_fewer_choices_than_beams_are_the_best_ones(engine: InlineEngine) -> None:
    every = search(engine, [50, 60], BeamOptions(5))
    best = search(engine, [50, 60], BeamOptions(5), n=2)
    assert [output.token_ids for output in best] == [output.token_ids for output in every[:2]]


@pytest.mark.parametrize("shown", [0, 2, 12, -1])
def test_logprobs_are_those_of_the_path(engine: InlineEngine, reference: Any, shown: int) -> None:
    prompt = [70, 80, 90]
    for output in search(engine, prompt, BeamOptions(3), logprobs=shown, prompt_logprobs=1):
        assert output.logprobs is not None
        ids = torch.tensor([prompt + output.token_ids])
        with torch.inference_mode():
            logits = reference(ids).logits[0, len(prompt) - 1 : -1]
        raw = torch.log_softmax(logits.float(), dim=-1)
        for row, token_id, entry in zip(raw, output.token_ids, output.logprobs, strict=True):
            assert entry.token_id == token_id
            assert entry.logprob == pytest.approx(float(row[token_id]), abs=1e-4)
            assert entry.rank == int((row > row[token_id]).sum()) + 1
            assert len(entry.top_ids) == (VOCAB_SIZE if shown == -1 else shown)
        assert (output.prompt_logprobs is not None) == (output.index == 0)


def test_leaving_early_leaves_nothing_behind(engine: InlineEngine) -> None:
    async def run() -> None:
        params = SamplingParams(max_tokens=200, n=2, ignore_eos=True)
        async with BeamSearch(engine, [20, 21], params, BeamOptions(4)) as beams:
            waiting = asyncio.create_task(anext(beams))
            while engine.core.stats().num_steps < 3:
                await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        await asyncio.sleep(0)

    asyncio.run(run())
    engine.check_empty()


# ------------------------------------------------------------------------------------------------------- whole requests


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    """The api over a random model that has the vocabulary of its tests."""
    directory = tmp_path_factory.mktemp("served")
    tokenizer = make_tokenizer(directory)
    make_tiny("llama", directory, vocab_size=SERVED_VOCAB_SIZE, eos_token_id=tokenizer.token_id("</s>"))
    deployment = Deployment(tokenizer)
    deployment.services.engine = InlineEngine(directory)
    return deployment


def test_best_of_is_the_width_and_n_the_number_of_choices(served: Deployment) -> None:
    fields = {"use_beam_search": True, "max_tokens": 8, "ignore_eos": True, "return_token_ids": True, "logprobs": 1}
    wide = served.complete("hello", n=4, **fields)
    few = served.complete("hello", n=2, best_of=4, temperature=0, **fields)
    assert [choice["token_ids"] for choice in few["choices"]] == [c["token_ids"] for c in wide["choices"][:2]]
    assert few["usage"]["completion_tokens"] == 16
    scores = [sum(choice["logprobs"]["token_logprobs"]) for choice in wide["choices"]]
    assert scores == sorted(scores, reverse=True)
    greedy = served.complete("hello", temperature=0, max_tokens=8, ignore_eos=True, logprobs=0)
    assert scores[0] >= sum(greedy["choices"][0]["logprobs"]["token_logprobs"]) - 1e-4


def test_a_chat_is_searched_too_and_its_stream_holds_whole_choices(served: Deployment) -> None:
    fields: Any = {"use_beam_search": True, "n": 3, "max_tokens": 6, "length_penalty": 0.5, "early_stopping": True}
    whole = served.chat(**fields)
    chunks = served.stream_chat(stream_options={"include_usage": True}, **fields)
    assert chunks[-1]["usage"] == {name: whole["usage"][name] for name in chunks[-1]["usage"]}
    for choice in whole["choices"]:
        own = [c["choices"][0] for c in chunks[:-1] if c["choices"][0]["index"] == choice["index"]]
        assert [c["delta"].get("content", "") for c in own] == ["", choice["message"]["content"]]
        assert own[-1]["finish_reason"] == choice["finish_reason"]


def test_options_of_sampling_are_reported_as_without_effect(served: Deployment) -> None:
    body = {"prompt": "x", "max_tokens": 2, "temperature": 0.5, "seed": 1}
    plain = served.request("POST", "/v1/completions", {**body, "length_penalty": 2.0, "early_stopping": "never"})
    assert plain.headers["X-Ember-Ignored-Fields"] == "length_penalty, early_stopping"
    searched = served.request("POST", "/v1/completions", {**body, "use_beam_search": True, "length_penalty": 2.0})
    assert searched.headers["X-Ember-Ignored-Fields"] == "temperature, seed"


def test_several_prompts_are_searched_each_by_itself(served: Deployment) -> None:
    fields = {"use_beam_search": True, "n": 2, "max_tokens": 5, "return_token_ids": True}
    both = served.complete(["hello", "world"], **fields)["choices"]
    alone = [choice for prompt in ("hello", "world") for choice in served.complete(prompt, **fields)["choices"]]
    assert [choice["token_ids"] for choice in both] == [choice["token_ids"] for choice in alone]
    assert [choice["index"] for choice in both] == [0, 1, 2, 3]
    assert all(isinstance(choice["text"], str) for choice in both)
    engine = served.services.engine
    assert isinstance(engine, InlineEngine)
    engine.check_empty()
