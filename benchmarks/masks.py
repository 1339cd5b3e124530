"""The time that structured output adds to a step, with the vocabulary of a real model.

    python benchmarks/masks.py [--rows 32] [--steps 200] [--forward-ms 10] [--device cpu]

Every row has a grammar (records, enums, recursion, patterns, free objects, regular expressions). It gets random tokens
that its mask allows, and begins again at the grammar's end. A step does what the engine does: it starts the masks,
waits for a forward pass (a sleep, since the host is idle during a GPU's), takes the masks, samples with them and sends
the tokens to the grammars. The output is the time that each of these adds to a step. For sampling it is the difference
to the same logits and options without masks, greedy and (not in the sum) at temperature 0.8 with top-p 0.95. The masks
allow the most likely tokens, as for a model that was asked for the form, except the first choice of every fourth row.
"masks alone" is the time of the masks without a forward pass. `--json FILE` writes the figures. On a GPU the engine's
sampling kernel reads the masks, which this does not measure.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # not this directory, where a module has the name of one of Python's

import numpy as np  # noqa: E402
import torch  # noqa: E402

from benchmarks.shapes import QWEN3_0_6B, write_tokenizer  # noqa: E402
from ember.engine.core.grammars.constraint import Constraint  # noqa: E402
from ember.engine.core.grammars.masks import MaskFiller, Masks, expand  # noqa: E402
from ember.engine.core.grammars.worker import GrammarWorker, Matcher, State  # noqa: E402
from ember.engine.core.grammars.workers import GrammarWorkers  # noqa: E402
from ember.engine.core.sampler import sample  # noqa: E402
from ember.engine.core.sequence import Sequence  # noqa: E402
from ember.front.text.json_schema import schema_grammar  # noqa: E402
from ember.front.text.portable_regex import portable  # noqa: E402
from ember.wire import Grammar, SamplingParams  # noqa: E402

VOCAB_SIZE: int = QWEN3_0_6B["vocab_size"]
EOS: int = QWEN3_0_6B["eos_token_id"]
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 60},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "born": {"type": "string", "format": "date"},
        "email": {"type": "string", "pattern": r"^\w+@\w+\.(com|org)$"},
        "tags": {"type": "array", "items": {"enum": ["a", "b", "c"]}, "maxItems": 5},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    },
    "required": ["name", "age", "born", "email", "tags", "note"],
    "additionalProperties": False,
}
TREE = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "text": {"type": "string"},
                "children": {"type": "array", "items": {"$ref": "#/$defs/node"}},
            },
            "required": ["text", "children"],
            "additionalProperties": False,
        }
    },
}
MANY_OPTIONAL = {
    "type": "object",
    "properties": {f"field_{i}": {"type": ["string", "integer", "null"]} for i in range(30)},
    "additionalProperties": False,
}
GRAMMARS = {
    "record": Grammar("json", schema_grammar(PERSON)),
    "tree": Grammar("json", schema_grammar(TREE)),
    "30 optional": Grammar("json", schema_grammar(MANY_OPTIONAL)),
    "enum of 500": Grammar("json", schema_grammar({"enum": [f"value number {i}" for i in range(500)]})),
    "any object": Grammar("json", schema_grammar({"type": "object"})),
    "free text": Grammar("regex", portable(r"(\w+ ){3,80}\.")),
    "phone": Grammar("regex", portable(r"\+\d{2} \d{3,5}/\d{4}")),
    "lark": Grammar("lark", 'start: item ("," item)*\nitem: WORD "=" NUMBER\nWORD: /[a-z]+/\nNUMBER: /[0-9]+/'),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--forward-ms", type=float, default=10.0, help="length of the forward pass; 0 hides nothing")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where the logits are")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        write_tokenizer(Path(directory))
        workers = GrammarWorkers(Path(directory), VOCAB_SIZE, [EOS])
        figures = {"compile": _compile(workers), **_steps(workers, options)}
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


def _compile(workers: GrammarWorkers) -> dict[str, float]:
    """Milliseconds until the first mask of each grammar can be had, by name; prints them."""
    start = time.perf_counter()
    _ready(workers, Grammar("regex", "warm"))
    found = {"tokenizer, once": time.perf_counter() - start}
    for name, grammar in GRAMMARS.items():
        start = time.perf_counter()
        _ready(workers, grammar)
        found[name] = time.perf_counter() - start
    print(f"{VOCAB_SIZE} tokens; compiled in ms: " + ", ".join(f"{name} {s * 1e3:.1f}" for name, s in found.items()))
    return {name: round(seconds * 1e3, 3) for name, seconds in found.items()}


def _ready(workers: GrammarWorkers, grammar: Grammar) -> GrammarWorker:
    """The grammar's worker, when it is compiled."""
    worker = workers.submit(grammar)
    while worker.state is not State.READY:
        assert worker.error is None, worker.error
        workers.receive(1.0)
    return worker


class _Rows:
    """Constrained sequences that go on for ever."""

    def __init__(self, workers: GrammarWorkers, count: int) -> None:
        self._workers = workers
        kinds = list(GRAMMARS.values())
        self.sequences = [self._sequence(kinds[i % len(kinds)]) for i in range(count)]

    def _sequence(self, grammar: Grammar) -> Sequence:
        sampling = SamplingParams(max_tokens=1 << 20, temperature=0.0, grammar=grammar)
        made = _plain(sampling)
        made.grammar = self._constraint(sampling)
        return made

    def _constraint(self, sampling: SamplingParams) -> Constraint:
        assert sampling.grammar is not None
        matcher = Matcher(self._workers, _ready(self._workers, sampling.grammar))
        matcher.prepare()
        return Constraint(sampling, matcher, [EOS], self._workers.num_words)

    def restart_finished(self, token_ids: list[int]) -> None:
        for sequence, token_id in zip(self.sequences, token_ids, strict=True):
            assert sequence.grammar is not None
            if sequence.grammar.is_complete or token_id == EOS:
                sequence.grammar.close()
                sequence.grammar = self._constraint(sequence.sampling)


def _plain(sampling: SamplingParams) -> Sequence:
    return Sequence(0, 0, [1], 1, sampling, seed=0, priority=0, arrival=0, salt=b"")


def _steps(workers: GrammarWorkers, options: argparse.Namespace) -> dict[str, Any]:
    device = torch.device(options.device)
    filler = MaskFiller(device.type == "cuda", VOCAB_SIZE if device.type == "cpu" else None)
    rows = _Rows(workers, options.rows)
    at_random = [_plain(SamplingParams(max_tokens=1, temperature=0.8, top_p=0.95)) for _ in rows.sequences]
    noise = torch.randn(options.rows, VOCAB_SIZE, generator=torch.Generator().manual_seed(0))
    rng = np.random.default_rng(0)
    parts: dict[str, list[float]] = {
        "start": [],
        "wait": [],
        "sample": [],
        "advance": [],
        "added": [],
        "sample, no masks": [],
        "sample at random": [],
        "sample at random, no masks": [],
        "masks alone": [],
    }
    for step in range(options.steps + 10):
        is_alone = step % 2 == 1  # every other step hides nothing, so both see the same rows
        marks = [time.perf_counter()]
        take = filler.start(rows.sequences)
        marks.append(time.perf_counter())
        if not is_alone:
            time.sleep(options.forward_ms / 1e3)
        before = time.perf_counter()
        masks = take()
        marks.append(time.perf_counter())
        waited = marks[-1] - before
        assert masks is not None and not masks.errors
        logits = _follow(noise, masks, rng).to(device)
        sampled = _time_sampling(logits, rows.sequences, masks)
        unmasked = _time_sampling(logits, rows.sequences, None)
        drawn = _time_sampling(logits, at_random, masks), _time_sampling(logits, at_random, None)
        token_ids = _draw(masks, rng)
        told = time.perf_counter()
        for sequence, token_id in zip(rows.sequences, token_ids, strict=True):
            assert sequence.grammar is not None
            if token_id != EOS:
                sequence.grammar.advance([token_id])
        workers.settle([row.grammar.matcher for row in rows.sequences if row.grammar and row.grammar.matcher], 1.0)
        told = time.perf_counter() - told
        rows.restart_finished(token_ids)
        if step < 10:
            continue
        started = marks[1] - marks[0]
        if is_alone:
            parts["masks alone"].append(started + waited)
        else:
            parts["start"].append(started)
            parts["wait"].append(waited)
            parts["sample"].append(sampled - unmasked)
            parts["advance"].append(told)
            parts["added"].append(started + waited + sampled - unmasked + told)
            parts["sample, no masks"].append(unmasked)
            parts["sample at random"].append(drawn[0] - drawn[1])
            parts["sample at random, no masks"].append(drawn[1])
    print(f"{options.rows} rows, forward pass of {options.forward_ms:g} ms, logits on {device.type}; ms in a step")
    print("| | median | 95 % |\n|---|---|---|")
    figures = {}
    for name, times in parts.items():
        median, high = statistics.median(times) * 1e3, float(np.quantile(times, 0.95)) * 1e3
        figures[name] = {"median_ms": round(median, 4), "p95_ms": round(high, 4)}
        print(f"| {name} | {median:.3f} | {high:.3f} |")
    return figures


def _follow(noise: torch.Tensor, masks: Masks, rng: np.random.Generator) -> torch.Tensor:
    """Logits of a model that follows the form, but wants to leave it in every fourth row."""
    logits = noise.clone()
    allowed = expand(masks.bits, VOCAB_SIZE).numpy()
    for i, row in enumerate(masks.rows):
        likely = rng.choice(np.nonzero(allowed[i])[0], 50)
        logits[row, likely] = torch.from_numpy(rng.uniform(15, 25, 50).astype(np.float32))
        forbidden = np.nonzero(~allowed[i])[0]
        if i % 4 == 0 and len(forbidden):
            logits[row, rng.choice(forbidden)] = 30.0
    return logits


def _time_sampling(logits: torch.Tensor, sequences: list[Sequence], masks: Masks | None) -> float:
    start = time.perf_counter()
    sample(logits, sequences, [EOS], masks)  # ends with its tokens on the host
    return time.perf_counter() - start


def _draw(masks: Masks, rng: np.random.Generator) -> list[int]:
    """A random token that may follow, for each row."""
    allowed = expand(masks.bits, VOCAB_SIZE).numpy()
    return [int(rng.choice(np.nonzero(row)[0])) for row in allowed]


if __name__ == "__main__":
    main()
