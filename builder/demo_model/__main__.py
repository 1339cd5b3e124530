"""Make the demo model: `python -m builder.demo_model` trains it, writes its files and measures it."""

from __future__ import annotations

import argparse
import itertools
import os
import time
from dataclasses import replace
from pathlib import Path

import torch

from builder.demo_model.bpe import MARKERS, SPECIAL, train_tokenizer
from builder.demo_model.chat import render
from builder.demo_model.config import OUTPUT, ModelConfig
from builder.demo_model.corpus import training_examples
from builder.demo_model.evaluate import report
from builder.demo_model.export import write_tokenizer, write_weights
from builder.demo_model.model import Qwen3
from builder.demo_model.train import Recipe, train

_TOKENIZER_EXAMPLES = 30_000


def _plain(text: str) -> str:
    for marker in (*SPECIAL, *MARKERS):
        text = text.replace(marker, "\n")
    return text


def make(recipe: Recipe, folder: Path) -> None:
    """All files of the model, from nothing."""
    examples = itertools.islice(training_examples(recipe.seed), _TOKENIZER_EXAMPLES)
    model = Qwen3(ModelConfig())
    tokenizer = train_tokenizer((_plain(render(example)) for example in examples), model.config.vocab_size)
    torch.manual_seed(recipe.seed)
    model.initialise()
    write_tokenizer(tokenizer, model.config, folder)
    started = time.time()
    train(tokenizer, model.train(), recipe, lambda trained: write_weights(trained, folder))
    print(f"trained in {time.time() - started:.0f} seconds")


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder of the model's files")
    parser.add_argument("--steps", type=int, default=Recipe.steps, help="training steps")
    parser.add_argument("--minutes", type=float, default=Recipe.minutes, help="end training after these minutes")
    parser.add_argument("--seed", type=int, default=Recipe.seed, help="seed of the corpus and of the weights")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="processor threads")
    parser.add_argument("--evaluate-only", action="store_true", help="measure the files that are there")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if not arguments.evaluate_only:
        recipe = replace(Recipe(), steps=arguments.steps, minutes=arguments.minutes, seed=arguments.seed)
        make(recipe, arguments.output)
    report(arguments.output)


if __name__ == "__main__":
    main()
