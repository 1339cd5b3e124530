"""Models that Ember runs through transformers, beside transformers' own generate: decode rate, prefill rate and memory.

    python benchmarks/through_transformers.py [--families DiffLlama GraniteSWA] [--batch 8] [--prompt 128] [--output 64]

Each family gets random weights of the same small shape (`SHAPE`). Both sides run in turns on one thread of this
process. The rates are by the process's CPU time, which other load on the machine changes little; the best round counts.
Memory is the peak of the resident set of a process of its own, which loads the model and generates once.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # not this directory: its queue.py is not the library's

SHAPE: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": 4096,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--families", nargs="+", default=["BitNet", "DiffLlama", "GraniteSWA"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--output", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--only", choices=["ember", "transformers"], help="the memory of one side with --model")
    parser.add_argument("--model", type=Path)
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    if options.only is not None:
        side: Any = Ember(options) if options.only == "ember" else Transformers(options)
        side.run(prompts(options), 8)
        print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))
        return
    print("| family | decode tok/s of CPU time | transformers | ratio | prefill | transformers | MiB | transformers |")
    print("|---|---|---|---|---|---|---|---|")
    for family in options.families:
        with tempfile.TemporaryDirectory() as directory:
            options.model = Path(directory)
            make(family, options)
            memory = [peak(side, options) for side in ("ember", "transformers")]
            sides: list[Any] = [Ember(options), Transformers(options)]
            best = [(0.0, 0.0), (0.0, 0.0)]
            for _ in range(options.rounds):
                for index, side in enumerate(sides):
                    found = side.rates(prompts(options), options.output)
                    best[index] = (max(best[index][0], found[0]), max(best[index][1], found[1]))
            (prefill, decode), (their_prefill, their_decode) = best
            cells = [f"{decode:.1f}", f"{their_decode:.1f}", f"{decode / their_decode:.2f}", f"{prefill:.0f}"]
            cells += [f"{their_prefill:.0f}", *(f"{each:.0f}" for each in memory)]
            print(f"| {family} | {' | '.join(cells)} |", flush=True)


def make(family: str, options: argparse.Namespace) -> None:
    import torch
    import transformers

    model_class = getattr(transformers, f"{family}ForCausalLM")
    torch.manual_seed(0)
    model = model_class(model_class.config_class(**SHAPE, dtype=options.dtype))
    model.to(getattr(torch, options.dtype)).save_pretrained(options.model)


def prompts(options: argparse.Namespace) -> list[list[int]]:
    import torch

    generator = torch.Generator().manual_seed(1)
    return torch.randint(10, SHAPE["vocab_size"], (options.batch, options.prompt), generator=generator).tolist()


def peak(side: str, options: argparse.Namespace) -> float:
    """The largest resident set of a process that loads the checkpoint and generates, in MiB."""
    values = {"batch": options.batch, "prompt": options.prompt, "dtype": options.dtype, "model": options.model}
    given = [word for name, value in values.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, str(Path(__file__).resolve()), "--only", side, *given]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: float = json.loads(done.stdout.splitlines()[-1])
    return found


class Ember:
    """The engine in this process."""

    def __init__(self, options: argparse.Namespace) -> None:
        from ember.boot import Timeline
        from ember.engine.core.assemble import assemble
        from ember.engine.core.boot import open_model
        from ember.wire import Configure

        length = options.prompt + options.output
        configure = Configure(
            model=str(options.model),
            device="cpu",
            dtype=options.dtype,
            model_impl="transformers",
            enable_prefix_caching=False,
            max_model_len=length,
            max_num_seqs=options.batch,
            num_threads=1,
            num_blocks=options.batch * -(-length // 16) * 4,
        )
        timeline = Timeline("bench")
        self.engine, _ = assemble(configure, open_model(configure, timeline, lambda located: None), timeline)

    def run(self, prompts: list[list[int]], num_output: int) -> tuple[float, float]:
        """CPU seconds until every sequence has a token, and those of the rest."""
        from ember.wire import Generate, SamplingParams

        sampling = SamplingParams(max_tokens=num_output, temperature=0.0, ignore_eos=True)
        start = time.process_time()
        for index, prompt in enumerate(prompts):
            self.engine.add(Generate(index, prompt, sampling))
        waiting = set(range(len(prompts)))
        while waiting:
            waiting -= {output.request_id for output in self.engine.step()}
        first = time.process_time()
        while self.engine.has_work:
            self.engine.step()
        return first - start, time.process_time() - first

    def rates(self, prompts: list[list[int]], num_output: int) -> tuple[float, float]:
        """Tokens per CPU second: of the prompts, and of decodes."""
        prefill, decode = self.run(prompts, num_output)
        return sum(map(len, prompts)) / prefill, len(prompts) * (num_output - 1) / decode


class Transformers:
    """transformers' generate with its own attention."""

    def __init__(self, options: argparse.Namespace) -> None:
        import torch
        import transformers

        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            options.model, dtype=getattr(torch, options.dtype)
        ).eval()

    def run(self, prompts: list[list[int]], num_output: int) -> float:
        """The CPU seconds of generating `num_output` tokens after each prompt."""
        import torch

        ids = torch.tensor(prompts)
        start = time.process_time()
        with torch.inference_mode():
            self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=num_output,
                min_new_tokens=num_output,
                do_sample=False,
            )
        return time.process_time() - start

    def rates(self, prompts: list[list[int]], num_output: int) -> tuple[float, float]:
        """Tokens per CPU second: of the prompts with one token each, and of decodes."""
        prefill, whole = self.run(prompts, 1), self.run(prompts, num_output)
        return sum(map(len, prompts)) / prefill, len(prompts) * (num_output - 1) / (whole - prefill)


if __name__ == "__main__":
    main()
