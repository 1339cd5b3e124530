"""What a quantised format costs, as a row of docs/quantization.md.

    python benchmarks/quantized.py                     the formats of `ember quantize`, and the plain model
    python benchmarks/quantized.py --model DIRECTORY   a checkpoint of the demo model in any format
    python benchmarks/quantized.py --shape qwen3-0.6b  memory, boot time and rates of a real shape, on a CPU

Of the demo model exact answers are counted. The questions are those of docs/demo-model.md, and the answers are the
engine's, greedy. The rates of a shape are tokens for each second of the CPU time of one thread, which other work on the
machine does not change much. Its random weights are made once, in --directory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # for `builder`; benchmarks/ itself would hide modules of Python's

from builder.demo_model.evaluate import Outcome, outcomes  # noqa: E402

if TYPE_CHECKING:
    from ember.engine.core.engine import Engine

ROWS = ("facts", "arithmetic", "json", "tool calls")
HEAD = f"| format | weights | boot | all | {' | '.join(ROWS)} |\n|---|---|---|---|{'---|' * len(ROWS)}"
SHAPE_HEAD = "| format | weights | boot | decode of 1 | decode of 8 | prompt of 256 |\n|---|---|---|---|---|---|"
NUM_DECODED = 24  # tokens of each request


def main() -> None:
    from ember.flags import QUANTIZE_FORMATS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a checkpoint of the demo model")
    parser.add_argument("--dtype", default="auto", help="of the activations; auto")
    parser.add_argument("--formats", nargs="+", default=["plain", *QUANTIZE_FORMATS], help="what to measure; all")
    parser.add_argument("--shape", help="a name in benchmarks/shapes.py: rates instead of answers")
    parser.add_argument("--directory", type=Path, default=ROOT / "build" / "shapes", help="of the shape's checkpoint")
    parser.add_argument("--rates-of", type=Path, help=argparse.SUPPRESS)  # one process for each checkpoint
    options = parser.parse_args()
    if options.rates_of is not None:
        print(json.dumps(rates(options.rates_of, options.dtype)))
        return
    if options.shape is not None:
        measure_shape(options)
        return
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


def measure_shape(options: argparse.Namespace) -> None:
    """Print the table of a shape."""
    from benchmarks.shapes import make_checkpoint
    from ember.cli.quantize import quantize

    source = make_checkpoint(options.shape, options.directory)
    print(SHAPE_HEAD)
    for form in options.formats:
        with tempfile.TemporaryDirectory(dir=options.directory) as folder:
            directory = source
            if form != "plain":
                directory = Path(folder) / form
                quantize(str(source), directory, form, None, lambda line: None)
            command = [sys.executable, __file__, "--rates-of", str(directory), "--dtype", options.dtype]
            made = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])
        found = " | ".join(f"{made[name]:.1f}/s" for name in ("decode of 1", "decode of 8", "prompt"))
        print(f"| {form} | {made['weights']} | {made['boot']:.2f} s | {found} |", flush=True)


def rates(directory: Path, dtype: str) -> dict[str, str | float]:
    """Memory, boot time and rates of a checkpoint."""
    from ember.wire import Generate, SamplingParams

    engine, size, seconds = booted(directory, dtype, num_threads=1)
    found: dict[str, str | float] = {"weights": size, "boot": seconds}
    for name, count, prompt in (("decode of 1", 1, 8), ("decode of 8", 8, 8), ("prompt", 1, 256)):
        best = 0.0
        for repeat in range(3):
            sampling = SamplingParams(NUM_DECODED, temperature=0.0, ignore_eos=True)
            for i in range(count):
                ids = [(1000 * repeat + 100 * i + 7 * n) % 5000 for n in range(prompt)]
                engine.add(Generate(len(found) * 100 + repeat * 10 + i, ids, sampling))
            started, tokens = time.process_time(), 0
            while engine.has_work:
                tokens += sum(len(output.token_ids) for output in engine.step())
                if name == "prompt" and tokens:
                    best = max(best, prompt / (time.process_time() - started))
                    break
                if tokens <= count:  # the prompts are read
                    started = time.process_time()
            while engine.has_work:
                engine.step()
            if name != "prompt":
                best = max(best, (tokens - count) / (time.process_time() - started))
        found[name] = best
    return found


def booted(directory: Path, dtype: str, num_threads: int | None = None) -> tuple[Engine, str, float]:
    """The engine of a checkpoint, the size of its weights, and the seconds of its boot."""
    from ember.boot import Timeline
    from ember.engine.core.assemble import assemble
    from ember.engine.core.boot import open_model
    from ember.sizes import binary_size
    from ember.wire import Configure

    started = time.perf_counter()
    message = Configure(model=str(directory), dtype=dtype, seed=0, max_model_len=1024, num_threads=num_threads)
    timeline = Timeline("quantized")
    engine, _ = assemble(message, open_model(message, timeline, lambda located: None), timeline)
    seconds = time.perf_counter() - started
    return engine, binary_size(engine.runner.model.weight_bytes), seconds  # type: ignore[attr-defined]


def row(name: str, directory: Path, dtype: str) -> str:
    """A line of the table."""
    from ember.engine.loading.resolve import DEMO
    from ember.wire import Generate, SamplingParams

    engine, size, seconds = booted(directory, dtype)

    def answer(prompts: list[list[int]], stops: set[int], limit: int) -> list[list[int]]:
        made: dict[int, list[int]] = defaultdict(list)
        sampling = SamplingParams(max_tokens=limit, temperature=0.0, stop_token_ids=sorted(stops))
        outputs = [output for i, ids in enumerate(prompts) for output in engine.add(Generate(i, ids, sampling))]
        while engine.has_work:
            outputs += engine.step()
        for output in outputs:
            made[output.request_id] += output.token_ids
        return [made[i] for i in range(len(prompts))]

    # A GGUF file has no tokenizer.json.
    found = outcomes(directory if (directory / "tokenizer.json").exists() else DEMO, answer)
    rates = [_rate([each for each in found if each.row == kind]) for kind in ROWS]
    return f"| {name} | {size} | {seconds:.2f} s | {_rate(found)} | {' | '.join(rates)} |"


def _rate(found: list[Outcome]) -> str:
    return f"{sum(each.right for each in found) / len(found):.1%}"


if __name__ == "__main__":
    main()
