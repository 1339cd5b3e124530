"""Grammars and reasoning in the whole engine, on a tiny random model: every option beside them, every end."""

import json
import re

import pytest

from ember.engine.core.grammars.compiling import CompilingRequests
from ember.engine.errors import ModelError
from ember.wire import Generate, Grammar, SamplingParams, Thinking
from tests.engine_core.inline import make_engine, run, tokens
from tests.engine_core.several import SeveralTokens
from tests.structured.json_model import END_THINK, THINK, load

SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 999}, "b": {"enum": ["x", "yy", None]}},
        "required": ["a", "b"],
        "additionalProperties": False,
        "x-guidance": {"whitespace_flexible": False},
    }
)
WORD = "[a-c]{2,6}x"
PROMPT = list(range(40, 70))


@pytest.fixture(scope="module")
def tokenizer(directory):
    return load(directory)


def params(grammar: Grammar | None, **options) -> SamplingParams:
    return SamplingParams(grammar=grammar, **{"max_tokens": 60, "temperature": 1.0, "seed": 3, **options})


def word(**options) -> SamplingParams:
    return params(Grammar("regex", WORD), **options)


def texts(tokenizer, outputs) -> dict[tuple[int, int], str]:
    return {key: tokenizer.decode(tokens(made)) for key, made in outputs.items()}


def is_valid(text: str) -> bool:
    value = json.loads(text)
    return list(value) == ["a", "b"] and 0 <= value["a"] <= 999 and value["b"] in ("x", "yy", None)


def test_samples_of_one_request_each_follow_the_grammar(engine, tokenizer):
    outputs = run(engine, [Generate(1, PROMPT, params(Grammar("json_schema", SCHEMA), n=12))])
    made = texts(tokenizer, outputs)
    assert len(made) == 12 and all(is_valid(text) for text in made.values())
    assert len(set(made.values())) > 3
    assert all(outputs[key][-1].finish_reason == "stop" for key in made)


def test_the_end_of_the_grammar_is_the_end_of_the_sample(engine, tokenizer):
    """EOS is not waited for, whether it counts or not, and no stop reason is told."""
    outputs = run(engine, [Generate(i, PROMPT, word(ignore_eos=i == 1)) for i in (1, 2)])
    for made in outputs.values():
        assert re.fullmatch(WORD, tokenizer.decode(tokens(made)))
        assert (made[-1].finish_reason, made[-1].stop_reason) == ("stop", None)


def test_rows_without_a_grammar_are_as_they_were(directory, engine, tokenizer):
    plain = SamplingParams(max_tokens=30, temperature=1.0, seed=11)
    alone = tokens(run(engine, [Generate(1, PROMPT, plain)])[1, 0])
    requests = [Generate(i, PROMPT[: 20 + i], word(seed=i)) for i in range(2, 8)]
    outputs = run(make_engine(directory), [Generate(1, PROMPT, plain), *requests])
    assert tokens(outputs[1, 0]) == alone
    assert all(re.fullmatch(WORD, tokenizer.decode(tokens(outputs[i, 0]))) for i in range(2, 8))


def test_a_seed_says_the_same_alone_in_a_batch_in_chunks_and_when_preempted(directory, engine, tokenizer):
    schema = Grammar("regex", r"\[(true,|false,|[0-9]{1,3},){20}[ab]*\]")
    requests = [Generate(i, [i + 40] * 30, params(schema, seed=i, max_tokens=90)) for i in range(6)]
    alone = {i: tokens(run(engine, [request])[i, 0]) for i, request in enumerate(requests)}
    crowded = make_engine(directory, num_blocks=24, max_num_batched_tokens=16)
    outputs = run(crowded, requests)
    assert crowded.stats().num_preemptions > 0
    assert {i: tokens(outputs[i, 0]) for i in range(6)} == alone
    again = [run(crowded, [requests[0]])[0, 0] for _ in range(2)]
    assert [tokens(outputs) for outputs in again] == [alone[0]] * 2 and again[1][0].num_cached_tokens > 0


def test_log_probabilities_are_of_the_raw_distribution(engine, tokenizer):
    plain = run(engine, [Generate(1, PROMPT, SamplingParams(max_tokens=1, temperature=0.0, logprobs=5))])[1, 0]
    constrained = run(engine, [Generate(1, PROMPT, word(temperature=0.0, logprobs=5))])[1, 0]
    assert re.fullmatch(WORD, tokenizer.decode(tokens(constrained)))
    first, raw = constrained[0].logprobs[0], plain[0].logprobs[0]
    assert first.top_ids == raw.top_ids and first.top_logprobs == pytest.approx(raw.top_logprobs, abs=1e-5)
    assert all(len(output.logprobs) == 1 for output in constrained)


def test_a_stop_token_inside_the_grammar_ends_it(engine, tokenizer):
    stop = tokenizer.encode("c")
    outputs = run(engine, [Generate(1, PROMPT, params(Grammar("regex", "[ab]{3}c[ab]{9}"), stop_token_ids=stop))])[1, 0]
    assert re.fullmatch("[ab]{3}c", tokenizer.decode(tokens(outputs)))
    assert (outputs[-1].finish_reason, outputs[-1].stop_reason) == ("stop", stop[0])


def test_min_tokens_goes_on_while_the_grammar_lets_it(engine, tokenizer):
    requests = [
        Generate(1, PROMPT, params(Grammar("regex", "x*"), min_tokens=9, logit_bias={tokenizer.eos_token_id: 50.0})),
        Generate(2, PROMPT, params(Grammar("regex", "x{4}"), min_tokens=9)),
    ]
    made = texts(tokenizer, run(engine, requests))
    assert made == {(1, 0): "x" * 9, (2, 0): "x" * 4}


def test_a_cut_leaves_the_grammar_unfinished(engine, tokenizer):
    outputs = run(engine, [Generate(1, PROMPT, params(Grammar("regex", "[ab]{50}"), max_tokens=7))])[1, 0]
    assert outputs[-1].finish_reason == "length" and len(tokens(outputs)) == 7
    outputs = run(engine, [Generate(1, PROMPT, params(Grammar("regex", "x{4}"), max_tokens=4))])[1, 0]
    assert outputs[-1].finish_reason == "stop"  # both at once: the text is whole


@pytest.mark.parametrize(("max_tokens", "finish_reason"), [(60, "stop"), (7, "length")])
def test_a_grammar_follows_several_tokens_of_a_step(directory, tokenizer, max_tokens, finish_reason):
    engine = make_engine(directory, num_blocks=100)
    said = [*tokenizer.encode("a"), *tokenizer.encode("b")] * 5
    engine.runner = SeveralTokens(engine.runner, {1: said}, count=2)
    outputs = run(engine, [Generate(1, PROMPT, params(Grammar("regex", "(ab){5}"), max_tokens=max_tokens))])[1, 0]
    assert tokens(outputs) == said[:max_tokens] and outputs[-1].finish_reason == finish_reason
    assert len(outputs[0].token_ids) == 2


def test_no_output_asked_for_none_made(engine):
    outputs = run(engine, [Generate(1, PROMPT, word(max_tokens=0))])[1, 0]
    assert tokens(outputs) == [] and outputs[-1].finish_reason == "length"


def test_penalties_and_truncation_beside_a_grammar(engine, tokenizer):
    options = {"repetition_penalty": 1.3, "presence_penalty": 1.0, "top_k": 3, "top_p": 0.8, "min_p": 0.1}
    outputs = run(engine, [Generate(i, PROMPT, word(seed=i, **options)) for i in range(8)])
    assert all(re.fullmatch(WORD, text) for text in texts(tokenizer, outputs).values())


# ------------------------------------------------------------------------------------------------------------ errors


def test_a_bad_grammar_is_an_error_of_its_field_and_of_nobody_else(engine, tokenizer):
    bad = Grammar("json_schema", '{"type":"array","uniqueItems":true}', param="response_format")
    outputs = run(engine, [Generate(1, PROMPT, params(bad, n=2)), Generate(2, PROMPT, word())])
    for index in range(2):
        (output,) = outputs[1, index]
        assert (output.finish_reason, output.error_param, output.token_ids) == ("error", "response_format", [])
        assert output.error.startswith("`response_format` cannot be used: ") and "uniqueItems" in output.error
    assert re.fullmatch(WORD, tokenizer.decode(tokens(outputs[2, 0])))


def test_options_that_leave_nothing_are_an_error_of_the_grammar_field(engine, tokenizer):
    a = tokenizer.encode("a")
    outputs = run(engine, [Generate(1, PROMPT, params(Grammar("regex", "xa", param="guided_regex"), bad_words=[a]))])
    last = outputs[1, 0][-1]
    assert (last.finish_reason, last.error_param) == ("error", "guided_regex")
    assert "`guided_regex`" in last.error and "other options of the request" in last.error


def test_a_model_without_a_tokenizer_still_answers_the_rest(directory, tmp_path):
    for path in directory.iterdir():
        if not path.name.startswith("tokenizer"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    try:
        engine = make_engine(tmp_path)
    except ModelError as error:
        pytest.fail(f"the engine needs no tokenizer to start: {error}")
    outputs = run(engine, [Generate(1, PROMPT, word()), Generate(2, PROMPT, SamplingParams(max_tokens=3, seed=1))])
    assert outputs[1, 0][-1].error_param == "structured_outputs" and "tokenizer.json" in outputs[1, 0][-1].error
    assert len(tokens(outputs[2, 0])) == 3


def test_a_grammar_that_takes_too_long(engine, monkeypatch):
    monkeypatch.setattr(engine, "compiling", CompilingRequests(engine.grammars, timeout_s=-1.0))
    huge = json.dumps({"properties": {f"p{i}": {"type": "string", "minLength": i} for i in range(2000)}})
    outputs = run(engine, [Generate(1, PROMPT, params(Grammar("json_schema", huge)))])
    assert outputs[1, 0][-1].error_param == "structured_outputs" and "not compiled within" in outputs[1, 0][-1].error


def test_a_request_aborted_while_its_grammar_is_compiled(engine):
    engine.add(Generate(1, PROMPT, params(Grammar("regex", "aborted[a-z]{3}"), n=3)))
    assert engine.has_work and engine.stats().num_waiting == 3
    engine.abort(1, 0)
    assert engine.stats().num_waiting == 2
    engine.abort(1)
    outputs = run(engine, [])
    assert not outputs and engine.stats().num_waiting == 0
    engine.add(Generate(1, PROMPT, word()))  # the id is free again
    engine.abort(1)
    run(engine, [])


def test_others_go_on_while_a_grammar_is_compiled(engine):
    engine.add(Generate(1, PROMPT, params(Grammar("regex", "meanwhile[a-z]{3}"), max_tokens=1)))
    engine.add(Generate(2, PROMPT, SamplingParams(max_tokens=2, seed=1)))
    answered = set()
    while engine.has_work:
        answered |= {output.request_id for output in engine.step()}
    assert answered == {1, 2}


# --------------------------------------------------------------------------------------------------------- reasoning


def test_reasoning_then_the_grammar(engine, tokenizer):
    start, end = tokenizer.token_id(THINK), tokenizer.token_id(END_THINK)
    gap = tokenizer.encode("\n\n")
    thinking = Thinking([[end]], start_token_ids=[start], is_open=True, budget=12, gap_token_ids=gap)
    outputs = run(engine, [Generate(1, PROMPT, word(thinking=thinking, n=6))])
    for made in outputs.values():
        token_ids = tokens(made)
        at = token_ids.index(end)
        assert at <= 12 and token_ids[at + 1 : at + 1 + len(gap)] == gap
        assert re.fullmatch(WORD, tokenizer.decode(token_ids[at + 1 + len(gap) :]))
        assert made[-1].finish_reason == "stop"


def test_a_budget_without_a_grammar(engine, tokenizer):
    end = tokenizer.token_id(END_THINK)
    thinking = Thinking([[end]], is_open=True, budget=4, forced_token_ids=[*tokenizer.encode("ab"), end])
    outputs = run(engine, [Generate(1, PROMPT, params(None, thinking=thinking, max_tokens=30, ignore_eos=True))])[1, 0]
    token_ids = tokens(outputs)
    assert end in token_ids[:4] or token_ids[4:6] == [*tokenizer.encode("ab"), end]
    assert len(token_ids) == 30


def test_a_budget_that_other_options_forbid(engine, tokenizer):
    end = tokenizer.token_id(END_THINK)
    thinking = Thinking([[end]], is_open=True, budget=1)
    outputs = run(engine, [Generate(1, PROMPT, params(None, thinking=thinking, bad_words=[[end]]))])[1, 0]
    assert (outputs[-1].finish_reason, outputs[-1].error_param) == ("error", "thinking_token_budget")
