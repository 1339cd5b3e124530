"""What a quantised format costs the demo model: exact answers, memory and boot time, as a row of docs/quantization.md.

    python benchmarks/quantized.py                     the formats of `ember quantize`, and the plain model
    python benchmarks/quantized.py --model DIRECTORY   a checkpoint of the demo model in any format

The questions are those of docs/demo-model.md, and the answers are the engine's, greedy.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # for `builder`; benchmarks/ itself would hide modules of Python's

from builder.demo_model.evaluate import Outcome, outcomes  # noqa: E402

ROWS = ("facts", "arithmetic", "json", "tool calls")
HEAD = f"| format | weights | boot | all | {' | '.join(ROWS)} |\n|---|---|---|---|{'---|' * len(ROWS)}"


def main() -> None:
    from ember.flags import QUANTIZE_FORMATS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a checkpoint of the demo model")
    parser.add_argument("--dtype", default="auto", help="of the activations; auto")
    parser.add_argument("--formats", nargs="+", default=["plain", *QUANTIZE_FORMATS], help="what to measure; all")
    options = parser.parse_args()
    print(HEAD)
    if options.model is not None:
        print(row(options.model.name, options.model, options.dtype), flush=True)
        return
    from ember.cli.quantize import quantize
    from ember.engine.loading.resolve import DEMO

    with tempfile.TemporaryDirectory() as folder:
        for form in options.formats:
            directory = DEMO
            if form != "plain":
                directory = Path(folder) / form
                quantize("demo", directory, form, None, lambda line: None)
            print(row(form, directory, options.dtype), flush=True)


def row(name: str, directory: Path, dtype: str) -> str:
    """A line of the table."""
    from ember.boot import Timeline
    from ember.engine.core.assemble import assemble
    from ember.engine.core.boot import open_model
    from ember.sizes import binary_size
    from ember.wire import Configure, Generate, SamplingParams

    started = time.perf_counter()
    message = Configure(model=str(directory), dtype=dtype, seed=0)
    timeline = Timeline("quantized")
    engine, _ = assemble(message, open_model(message, timeline, lambda located: None), timeline)
    seconds = time.perf_counter() - started
    size = binary_size(engine.runner.model.weight_bytes)  # type: ignore[attr-defined]

    def answer(prompts: list[list[int]], stops: set[int], limit: int) -> list[list[int]]:
        made: dict[int, list[int]] = defaultdict(list)
        sampling = SamplingParams(max_tokens=limit, temperature=0.0, stop_token_ids=sorted(stops))
        outputs = [output for i, ids in enumerate(prompts) for output in engine.add(Generate(i, ids, sampling))]
        while engine.has_work:
            outputs += engine.step()
        for output in outputs:
            made[output.request_id] += output.token_ids
        return [made[i] for i in range(len(prompts))]

    found = outcomes(directory, answer)
    rates = [_rate([each for each in found if each.row == kind]) for kind in ROWS]
    return f"| {name} | {size} | {seconds:.2f} s | {_rate(found)} | {' | '.join(rates)} |"


def _rate(found: list[Outcome]) -> str:
    return f"{sum(each.right for each in found) / len(found):.1%}"


if __name__ == "__main__":
    main()
