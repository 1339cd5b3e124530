"""The engine's own behaviour: stops, limits, samples, logprobs, aborts, errors. On one tiny model."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from ember.engine.core.broken_weights import broken_weights
from ember.engine.errors import ModelError
from ember.engine.layers.block_linear import BlockLinear
from ember.wire import Generate, SamplingParams
from tests.engine_core.inline import greedy, make_engine, run, tokens
from tests.engine_models.tiny import EOS_TOKEN_ID, VOCAB_SIZE, make_tiny

PROMPT = [10, 20, 30, 40, 50, 60, 70, 80, 90, 100]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return make_tiny("qwen3", tmp_path_factory.mktemp("qwen3"))


@pytest.fixture
def engine(directory):
    return make_engine(directory)


def one(engine, prompt=PROMPT, **params):
    return run(engine, [Generate(1, list(prompt), greedy(**{"max_tokens": 20, **params}))])[1, 0]


def test_length_and_stop_token(engine):
    outputs = one(engine)
    answer = tokens(outputs)
    assert len(answer) == 20
    assert (outputs[-1].finish_reason, outputs[-1].stop_reason) == ("length", None)
    assert all(output.finish_reason is None for output in outputs[:-1])

    stop = answer[4]
    outputs = one(engine, stop_token_ids=[stop])
    first = answer.index(stop)
    assert tokens(outputs) == answer[: first + 1]
    assert (outputs[-1].finish_reason, outputs[-1].stop_reason) == ("stop", stop)


def test_eos_ends_unless_ignored(engine):
    bias = {EOS_TOKEN_ID: 1000.0}
    outputs = one(engine, ignore_eos=False, logit_bias=bias)
    assert tokens(outputs) == [EOS_TOKEN_ID]
    assert (outputs[-1].finish_reason, outputs[-1].stop_reason) == ("stop", EOS_TOKEN_ID)
    assert tokens(one(engine, ignore_eos=True, logit_bias=bias)) == [EOS_TOKEN_ID] * 20
    outputs = one(engine, ignore_eos=False, logit_bias=bias, min_tokens=3)
    assert tokens(outputs)[3:] == [EOS_TOKEN_ID] and EOS_TOKEN_ID not in tokens(outputs)[:3]


def test_context_length_ends_generation(directory):
    engine = make_engine(directory, max_model_len=15)
    outputs = one(engine, max_tokens=100)
    assert len(tokens(outputs)) == 5 and outputs[-1].finish_reason == "length"


def test_samples_share_the_prompt_and_differ_by_seed(engine):
    prompt = PROMPT * 3
    params = SamplingParams(max_tokens=8, n=4, temperature=1.5, seed=42, ignore_eos=True)
    outputs = run(engine, [Generate(1, prompt, params)])
    texts = [tokens(outputs[1, i]) for i in range(4)]
    assert len({tuple(text) for text in texts}) == 4
    assert [outputs[1, i][0].num_cached_tokens for i in range(4)] == [0, 24, 24, 24]
    for i in range(4):  # sample i of n is the request with seed + i
        alone = SamplingParams(max_tokens=8, temperature=1.5, seed=42 + i, ignore_eos=True)
        assert tokens(run(engine, [Generate(2, prompt, alone)])[2, 0]) == texts[i]


def test_seeded_tokens_are_the_same_alone_and_in_a_full_batch(directory):
    engine = make_engine(directory, enable_prefix_caching=False)
    seeded = SamplingParams(max_tokens=10, temperature=1.0, top_p=0.9, seed=7, ignore_eos=True)
    alone = tokens(run(engine, [Generate(0, PROMPT, seeded)])[0, 0])
    others = [
        Generate(i, [i + 10] * (i + 1), SamplingParams(max_tokens=10, temperature=1.0, ignore_eos=True))
        for i in range(1, 12)
    ]
    assert tokens(run(engine, [*others, Generate(0, PROMPT, seeded)])[0, 0]) == alone


def test_unseeded_requests_differ(engine):
    params = SamplingParams(max_tokens=10, temperature=2.0, ignore_eos=True)
    outputs = run(engine, [Generate(i, PROMPT, params) for i in range(3)])
    assert len({tuple(tokens(outputs[i, 0])) for i in range(3)}) == 3


def test_logprobs_equal_a_softmax_over_transformers_logits(engine, directory):
    outputs = one(engine, max_tokens=6, logprobs=4, prompt_logprobs=2)
    answer = tokens(outputs)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    ids = [*PROMPT, *answer]
    with torch.inference_mode():
        expected = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    for i, output in enumerate(outputs):
        (entry,) = output.logprobs
        row = expected[len(PROMPT) - 1 + i]
        assert entry.token_id == answer[i] and entry.rank == 1
        assert entry.logprob == pytest.approx(row[answer[i]].item(), abs=1e-3)
        assert entry.top_ids == row.topk(4).indices.tolist()
        assert entry.top_logprobs == pytest.approx(row.topk(4).values.tolist(), abs=1e-3)
    first, *rest = outputs[0].prompt_logprobs
    assert first is None and len(rest) == len(PROMPT) - 1
    for i, entry in enumerate(rest):
        row = expected[i]
        assert entry.token_id == PROMPT[i + 1]
        assert entry.logprob == pytest.approx(row[PROMPT[i + 1]].item(), abs=1e-3)
        assert entry.rank == 1 + int((row > row[PROMPT[i + 1]]).sum())
        assert entry.top_ids == row.topk(2).indices.tolist()
    assert all(output.prompt_logprobs is None for output in outputs[1:])


@pytest.mark.parametrize("configure", [{"max_num_batched_tokens": 3}, {}])
def test_scoring_a_prompt_without_generating(directory, configure):
    engine = make_engine(directory, **configure)
    (output,) = one(engine, max_tokens=0, prompt_logprobs=0)
    assert output.token_ids == [] and output.finish_reason == "length"
    assert [entry and entry.token_id for entry in output.prompt_logprobs] == [None, *PROMPT[1:]]
    assert engine.stats().num_free_blocks == engine.stats().num_blocks


def test_allowed_ids_and_bad_words_hold_throughout(engine):
    assert set(tokens(one(engine, allowed_token_ids=[11, 12, 13]))) <= {11, 12, 13}
    answer = tokens(one(engine))
    word = answer[2:4]
    banned = tokens(one(engine, bad_words=[word, [answer[0]]]))
    assert answer[0] not in banned
    assert all(banned[i : i + 2] != word for i in range(len(banned)))


def test_abort_frees_pages_at_once(engine):
    total = engine.stats().num_blocks
    for n, index in ((1, None), (3, None), (3, 1)):
        engine.add(Generate(5, PROMPT, greedy(50, n=n)))
        engine.step()
        engine.step()
        engine.abort(5, index)
        if index is None:
            assert engine.stats().num_free_blocks == total and not engine.has_work
        else:
            assert engine.stats().num_running == n - 1
            engine.abort(5)
    engine.abort(12345)  # unknown: ignored
    engine.add(Generate(6, PROMPT, greedy(50)))
    engine.abort(6)  # while waiting
    assert not engine.has_work and engine.stats().num_free_blocks == total


def test_a_held_engine_keeps_its_requests_and_goes_on(engine):
    expected = tokens(one(engine, max_tokens=6))
    engine.add(Generate(7, PROMPT, greedy(6)))
    made = tokens(engine.step())
    engine.is_paused = True
    assert not engine.has_work and engine.stats().num_running == 1
    engine.is_paused = False
    while engine.has_work:
        made += tokens(engine.step())
    assert made == expected


def test_a_sample_aborted_before_its_siblings_started_does_not_hold_them_up(engine):
    engine.add(Generate(1, PROMPT * 2, greedy(4, n=3)))
    engine.abort(1, 0)
    outputs = run(engine, [])
    assert {index for _, index in outputs} == {1, 2}


@pytest.mark.parametrize(
    ("prompt", "says"),
    [([], "0 tokens"), ([5] * 300, "300 tokens"), ([VOCAB_SIZE], "token id"), ([-1], "token id")],
)
def test_requests_that_can_never_run_fail_alone(engine, prompt, says):
    good = Generate(1, PROMPT, greedy(3))
    outputs = run(engine, [Generate(2, prompt, greedy(3, n=2)), good])
    assert len(tokens(outputs[1, 0])) == 3
    for index in range(2):
        (output,) = outputs[2, index]
        assert output.finish_reason == "error" and says in output.error


def test_a_request_for_an_adapter_that_is_not_loaded_is_refused_by_its_name(engine):
    outputs = run(engine, [Generate(1, PROMPT, greedy(2, n=2), adapter="sql"), Generate(2, PROMPT, greedy(2))])
    for index in range(2):
        (output,) = outputs[1, index]
        assert (output.finish_reason, output.error_param, output.token_ids) == ("error", "model", [])
        assert "'sql'" in output.error
    assert len(tokens(outputs[2, 0])) == 2


def test_weights_that_are_no_numbers_are_named_after_the_first_output(tmp_path, caplog):
    engine = make_engine(make_tiny("llama", tmp_path))
    parts = engine.runner.model.parts
    qkv = parts.blocks[1].mixer.qkv
    blocks = torch.full((192, 36), 255, dtype=torch.uint8)  # Q4_0, whose scale is the first two bytes, a NaN
    parts.blocks[1].mixer.qkv = BlockLinear(blocks, type="Q4_0", dtype=qkv.dtype)
    assert broken_weights(engine.runner.model) == ["blocks.1.mixer.qkv"]
    parts.blocks[1].mixer.qkv = qkv
    parts.head.rows[0][7, 3] = math.inf
    outputs = run(engine, [Generate(1, PROMPT, greedy(3)), Generate(2, PROMPT[:5], greedy(3))])
    parts.head.rows[0][7, 3] = math.nan
    outputs |= run(engine, [Generate(3, PROMPT, greedy(3))])
    named = "NaN or infinities in head"
    assert named in outputs[3, 0][-1].error
    assert sum(named.removesuffix(" in head") in record.message for record in caplog.records) == 1


def test_nan_fails_its_request_alone(engine, monkeypatch):
    logits = engine.runner.model.logits

    def poisoned(hidden):
        result = logits(hidden)
        if len(result) == 2:
            result[0, 0] = math.nan
        return result

    monkeypatch.setattr(engine.runner.model, "logits", poisoned)
    outputs = run(engine, [Generate(1, PROMPT, greedy(3)), Generate(2, PROMPT[:5], greedy(3))])
    assert outputs[1, 0][-1].finish_reason == "error" and "NaN" in outputs[1, 0][-1].error
    assert len(tokens(outputs[2, 0])) == 3
    assert engine.stats().num_free_blocks == engine.stats().num_blocks


def test_out_of_memory_fails_the_largest_and_spares_the_rest(engine, monkeypatch):
    forward = engine.runner.model.forward

    def limited(batch, cache):
        if len(batch.token_ids) > 20:
            raise torch.OutOfMemoryError("tried to allocate too much")
        return forward(batch, cache)

    monkeypatch.setattr(engine.runner.model, "forward", limited)
    outputs = run(engine, [Generate(1, PROMPT, greedy(3)), Generate(2, PROMPT * 3, greedy(3))])
    assert "out of memory" in outputs[2, 0][-1].error
    assert len(tokens(outputs[1, 0])) == 3
    assert engine.stats().num_free_blocks == engine.stats().num_blocks


def test_out_of_memory_between_two_samplings_leaves_prompt_logprobs_whole(engine, monkeypatch):
    plain = one(engine, max_tokens=2, prompt_logprobs=1)[0].prompt_logprobs
    logits = engine.runner.model.logits
    failures = [True]

    def fails_once(hidden):
        if len(hidden) == 2 and failures:
            failures.clear()
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        return logits(hidden)

    monkeypatch.setattr(engine.runner.model, "logits", fails_once)
    requests = [Generate(1, PROMPT, greedy(2, prompt_logprobs=1)), Generate(2, PROMPT * 2, greedy(2))]
    outputs = run(engine, requests)
    assert "out of memory" in outputs[2, 0][-1].error
    assert outputs[1, 0][0].prompt_logprobs == plain


def test_only_the_first_sample_brings_prompt_logprobs(engine):
    outputs = run(engine, [Generate(1, PROMPT, greedy(2, n=2, prompt_logprobs=0))])
    assert len(outputs[1, 0][0].prompt_logprobs) == len(PROMPT)
    assert outputs[1, 1][0].prompt_logprobs is None


def test_waiting_samples_share_the_prompts_tokens(engine):
    prompt = list(PROMPT)
    engine.add(Generate(1, prompt, greedy(3, n=50)))
    sequences = engine._sequences[1]
    assert all(sequence.token_ids is prompt for sequence in sequences)
    run(engine, [])
    assert prompt == PROMPT


def test_penalties_look_at_all_tokens_so_far(engine):
    answer = tokens(one(engine, max_tokens=30, frequency_penalty=2.0, presence_penalty=2.0, repetition_penalty=5.0))
    assert len(set(answer)) == len(answer) and not set(answer) & set(PROMPT)


def test_every_running_sequence_gets_its_token_in_every_step(directory):
    engine = make_engine(directory, max_num_batched_tokens=2, max_num_seqs=8)
    for i in range(4):
        engine.add(Generate(i, [i + 10], greedy(10)))
    gained = dict.fromkeys(range(4), 0)
    for _ in range(12):
        for output in engine.step():
            gained[output.request_id] += 1
    assert gained[0] == gained[1] == 10 and gained[2] > 0


def test_end_tokens_without_logits_are_left_out(tmp_path):
    directory = make_tiny("llama3", tmp_path, eos_token_id=[2, 999_999])
    engine = make_engine(directory)
    assert engine.runner.model.config.eos_token_ids == [2]
    assert len(tokens(one(engine, max_tokens=4, min_tokens=2))) >= 2


def test_the_tokenizers_end_token_ends_too(directory):
    engine = make_engine(directory)
    engine.add_end_tokens([7, EOS_TOKEN_ID, VOCAB_SIZE, -1])
    assert engine.eos_token_ids == {EOS_TOKEN_ID, 7}
    bias = {7: 1000.0}
    outputs = one(engine, ignore_eos=False, logit_bias=bias)
    assert tokens(outputs) == [7] and (outputs[-1].finish_reason, outputs[-1].stop_reason) == ("stop", 7)
    assert tokens(one(engine, ignore_eos=True, logit_bias=bias)) == [7] * 20
    outputs = one(engine, ignore_eos=False, logit_bias=bias, min_tokens=3)
    assert tokens(outputs)[3:] == [7] and 7 not in tokens(outputs)[:3]


def test_a_cache_that_cannot_be_allocated_is_one_line(directory):
    with pytest.raises(ModelError, match="NUM_GPU_BLOCKS_OVERRIDE"):
        make_engine(directory, num_blocks=1 << 40)


def test_a_step_counts_the_prompt_tokens_it_computes_and_the_tokens_it_generates(directory):
    engine = make_engine(directory, max_num_batched_tokens=8)

    def counted(**params):
        before, steps_before = engine.stats(), sum(engine.stats().step_token_counts)
        one(engine, **params)
        after = engine.stats()
        return after.step_tokens - before.step_tokens, sum(after.step_token_counts) - steps_before

    assert counted(max_tokens=5) == (len(PROMPT) + 5, 2 + 4)  # the prompt takes two steps
    assert counted(max_tokens=5) == (len(PROMPT) - 8 + 5, 5)  # a block of it was cached
    assert counted(max_tokens=0, prompt=[3] * 20) == (20, 3)
    stop = tokens(one(engine))[0]
    assert counted(stop_token_ids=[stop])[0] == len(PROMPT) - 8 + 1
    assert engine.stats().generation_tokens == 5 + 5 + 20 + 1
