"""Sampled output of every schema is valid, by the judgement of the jsonschema library."""

from __future__ import annotations

import json
import warnings
from typing import Any

import jsonschema
import pytest

from ember.front.text.json_schema import schema_grammar
from ember.wire import Generate, Grammar, SamplingParams
from tests.engine_core.inline import make_engine, run, tokens
from tests.structured.json_model import load
from tests.structured.schemas import ALL

SAMPLES = 2
MAX_TOKENS = 120


def complaint(schema: dict[str, Any], text: str) -> str | None:
    """What is wrong with the text as an answer; None when it is valid."""
    try:
        value = json.loads(text)
    except ValueError as error:
        return f"no JSON: {error}"
    cls = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        worst = jsonschema.exceptions.best_match(
            cls(schema, format_checker=cls.FORMAT_CHECKER).iter_errors(value),
        )
    return None if worst is None else worst.message


@pytest.fixture(scope="module")
def outputs(directory):
    """By (number of the schema, sample): text and reason of the end. All in one engine, so in full batches."""
    tokenizer = load(directory)
    ends = dict.fromkeys([tokenizer.encode(text)[0] for text in ('"', "}", "]", ",")], 4.0)
    requests = []
    for number, schema in enumerate(ALL.values()):
        grammar = Grammar("json", schema_grammar(schema))
        sampling = SamplingParams(MAX_TOKENS, SAMPLES, temperature=1.0, seed=number, logit_bias=ends, grammar=grammar)
        requests.append(Generate(number, [40 + number % 100, 50, 60], sampling))
    engine = make_engine(directory, max_num_seqs=64, num_blocks=2048)
    made = run(engine, requests)
    return {
        key: (tokenizer.decode(tokens(parts)), parts[-1].finish_reason, parts[-1].error) for key, parts in made.items()
    }


def test_there_are_many():
    assert len(ALL) >= 220 and len({json.dumps(schema) for schema in ALL.values()}) == len(ALL)


def test_no_schema_is_refused(outputs):
    assert {error for _, _, error in outputs.values() if error is not None} == set()


def test_every_finished_output_is_valid(outputs):
    names = list(ALL)
    wrong = {}
    finished = 0
    for (number, sample), (text, reason, _) in outputs.items():
        if reason == "stop":
            finished += 1
            found = complaint(ALL[names[number]], text)
            if found is not None:
                wrong[names[number], sample] = (text, found)
    assert wrong == {}
    assert finished > 0.85 * SAMPLES * len(ALL), "too few to tell"


def test_nearly_every_schema_has_a_finished_output(outputs):
    """The few others have samples that run into a long string; what they hold so far is checked elsewhere."""
    names = list(ALL)
    done = {number for (number, _), (_, reason, _) in outputs.items() if reason == "stop"}
    missing = [name for number, name in enumerate(names) if number not in done]
    assert len(missing) < 0.1 * len(ALL), missing


def test_the_judge_knows_wrong_from_right():
    assert complaint(ALL["integer in 0 to 9"], "7") is None
    for name, text in (
        ("integer in 0 to 9", "10"),
        ("format date", '"2023-02-30"'),
        ("format ipv4", '"1.2.3"'),
        ("pattern ^a|z$", '"ba"'),
        ("one of tagged", '{"kind":"dog"}'),
        ("tree", '{"leaf":true}'),
        ("any object", "{"),
    ):
        assert complaint(ALL[name], text) is not None
