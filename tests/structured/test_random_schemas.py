"""What a schema allows can always be completed, and what is complete is valid, by the judgement of jsonschema.

`NUM_SCHEMAS` and `NUM_WALKS` are small here; the same holds of any number.
"""

from __future__ import annotations

import json
import random
from typing import Any

from ember.front.text.json_schema import schema_grammar
from ember.wire import Generate, Grammar, SamplingParams
from tests.engine_core.inline import make_engine, run, tokens
from tests.structured import random_schemas
from tests.structured.json_model import load
from tests.structured.test_schemas import complaint

NUM_SCHEMAS, NUM_WALKS = 80, 4
NUM_SAMPLED = 16


def test_walks_end_in_valid_values() -> None:
    num_refused = 0
    for seed in range(NUM_SCHEMAS):
        given = random_schemas.document(random.Random(seed))
        try:
            start = random_schemas.matcher(given)
        except ValueError as error:
            assert "no value matches" in str(error) or "`minProperties`" in str(error)
            num_refused += 1
            continue
        for number in range(NUM_WALKS):
            chance = random.Random(1000 * seed + number)
            text = random_schemas.walk(start, chance, chance.randrange(5, 120))
            assert complaint(given, text) is None, (json.dumps(given), text)
    assert num_refused < NUM_SCHEMAS / 2


def test_sampled_outputs_are_valid(directory) -> None:
    tokenizer = load(directory)
    ends = dict.fromkeys([tokenizer.encode(text)[0] for text in ('"', "}", "]", ":")], 4.0)
    schemas: list[dict[str, Any]] = []
    requests = []
    seed = 10_000
    while len(schemas) < NUM_SAMPLED:
        seed += 1
        given = random_schemas.document(random.Random(seed))
        try:
            grammar = Grammar("json", schema_grammar(given), "response_format")
        except ValueError:
            continue
        sampling = SamplingParams(150, 2, temperature=1.2, seed=seed, logit_bias=ends, grammar=grammar)
        requests.append(Generate(len(schemas), [40, 50, 60], sampling))
        schemas.append(given)
    made = run(make_engine(directory, max_num_seqs=32, num_blocks=1024), requests)
    finished = 0
    for (number, _), parts in made.items():
        assert parts[-1].finish_reason in ("stop", "length"), (parts[-1].error, schemas[number])
        if parts[-1].finish_reason == "stop":
            finished += 1
            text = tokenizer.decode(tokens(parts))
            assert complaint(schemas[number], text) is None, (json.dumps(schemas[number]), text)
    assert finished > NUM_SAMPLED / 2
