"""Training: a number of steps over packed rows, loss on what the assistant writes.

The first steps see nothing but texts to repeat. Copying from the prompt is what calls, JSON and names need, and a
network that meets it among everything else finds the facts first and copying very late.

The run is cut into stages: a long one and two shorter ones, each of which goes on from the end of the one before with
fresh examples and the rate up again. What is kept is the mean of the weights at their ends, which answers better than
each of them (Izmailov et al. 2018, "Averaging weights leads to wider optima and better generalization").
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from builder.demo_model.chat import Example
from builder.demo_model.corpus import copying_examples, training_examples
from builder.demo_model.model import Qwen3
from builder.demo_model.muon import Muon
from builder.demo_model.packing import LENGTHS, Rows, encode, pack, split_by_length


@dataclass(frozen=True)
class Recipe:
    """The settings of one training run, which ends after its steps or, on a slow machine, after its minutes."""

    seed: int = 1
    examples: int = 100_000
    copying_examples: int = 12_000
    copying_steps: int = 160
    steps: int = 4600
    minutes: float = 55.0
    tokens_per_step: int = 4096
    matrix_rate: float = 0.02
    other_rate: float = 3e-3
    warmup: int = 40
    decay_from: float = 0.25
    save_every: int = 100
    restarts: int = 2
    restart_share: float = 1 / 6  # of the steps and minutes, for each restart

    def stages(self) -> list[Recipe]:
        """The recipes of the stages, in order."""
        first, later = 1 - self.restarts * self.restart_share, self.restart_share
        main = replace(self, steps=round(self.steps * first), minutes=self.minutes * first)
        restart = replace(
            self,
            steps=round(self.steps * later),
            minutes=self.minutes * later,
            copying_steps=0,
            matrix_rate=0.6 * self.matrix_rate,
            other_rate=0.7 * self.other_rate,
            decay_from=0.1,
        )
        return [main, *(replace(restart, seed=self.seed + 10 * (i + 1)) for i in range(self.restarts))]


def learning_rate(step: int, done: float, recipe: Recipe) -> float:
    """Share of the peak rate, `done` of the run being over: a short rise, a plateau, and a line down to zero."""
    rise = min(1.0, (step + 1) / recipe.warmup)
    return rise * min(1.0, max(0.0, (1 - done) / (1 - recipe.decay_from)))


class Sampler:
    """Endless shuffled batches of one kind of rows."""

    def __init__(self, rows: Rows, size: int, rng: np.random.Generator, device: torch.device) -> None:
        self.rows, self.size, self.rng, self.device = rows, size, rng, device
        self.order = np.empty(0, np.int64)

    def next(self) -> tuple[Tensor, Tensor, Tensor]:
        """The next batch; rows come again only after all have been seen."""
        while len(self.order) < self.size:
            self.order = np.concatenate((self.order, self.rng.permutation(len(self.rows.ids))))
        index, self.order = self.order[: self.size], self.order[self.size :]
        return self.rows.batch(index, self.device)


def make_samplers(
    tokenizer: Tokenizer, examples: Iterable[Example], recipe: Recipe, device: torch.device
) -> list[Sampler]:
    """Examples as batches of short and of long rows, in the proportion in which they come."""
    parts = split_by_length(encode(tokenizer, examples))
    packed = [pack(part, length) for part, length in zip(parts, LENGTHS, strict=True) if part]
    total = sum(rows.ids.size for rows in packed)
    rng = np.random.default_rng(recipe.seed)
    samplers = []
    for rows in packed:
        length = rows.ids.shape[1]
        count = max(1, round(recipe.tokens_per_step * rows.ids.size / total / length))
        samplers.append(Sampler(rows, count, rng, device))
    shown = ", ".join(f"{len(sampler.rows.ids)} rows of {sampler.rows.ids.shape[1]}" for sampler in samplers)
    print(f"corpus: {total} tokens in {shown}", flush=True)
    return samplers


def batch_loss(model: Qwen3, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Summed loss over the trained tokens of a batch."""
    ids, trained, mask = batch
    positions = torch.arange(ids.size(1), device=ids.device)[None]
    with torch.autocast(ids.device.type, torch.bfloat16):
        hidden = model(ids, positions, mask)
        wanted = trained[:, 1:]
        logits = model.logits(hidden[:, :-1][wanted])
    return F.cross_entropy(logits.float(), ids[:, 1:][wanted], reduction="sum")


def train(tokenizer: Tokenizer, model: Qwen3, recipe: Recipe, save: Callable[[Qwen3], None]) -> None:
    """Train a model in place, in all stages; `save` is called with it now and then and at the end."""
    ends: list[dict[str, Tensor]] = []
    for stage in recipe.stages():
        _train_stage(tokenizer, model, stage, save)
        ends.append({name: weight.detach().clone() for name, weight in model.named_parameters()})
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(torch.stack([end[name] for end in ends]).mean(dim=0))
    save(model)


def _train_stage(tokenizer: Tokenizer, model: Qwen3, recipe: Recipe, save: Callable[[Qwen3], None]) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    first = itertools.islice(copying_examples(recipe.seed), recipe.copying_examples)
    main = itertools.islice(training_examples(recipe.seed), recipe.examples)
    first_samplers = make_samplers(tokenizer, first, recipe, device) if recipe.copying_steps else []
    main_samplers = make_samplers(tokenizer, main, recipe, device)
    model.to(device)
    matrices = [weight for name, weight in model.named_parameters() if weight.dim() == 2 and "embed" not in name]
    others = [weight for name, weight in model.named_parameters() if weight.dim() == 1 or "embed" in name]
    muon = Muon(matrices)
    adam = torch.optim.AdamW(others, lr=recipe.other_rate, betas=(0.9, 0.95), weight_decay=0.0)
    started = time.time()
    shown = 0.0
    for step in itertools.count():
        done = max(step / recipe.steps, (time.time() - started) / (60 * recipe.minutes))
        if done >= 1:
            break
        share = learning_rate(step, done, recipe)
        batches = [sampler.next() for sampler in (first_samplers if step < recipe.copying_steps else main_samplers)]
        count = sum(int(trained[:, 1:].sum()) for _, trained, _ in batches)
        total = 0.0
        for batch in batches:
            loss = batch_loss(model, batch) / count
            torch.autograd.backward(loss)
            total += loss.item()
        for group in adam.param_groups:
            group["lr"] = recipe.other_rate * share
        adam.step()
        adam.zero_grad(set_to_none=True)
        muon.step(recipe.matrix_rate * share)
        shown = total if step == 0 else 0.95 * shown + 0.05 * total
        if step % 20 == 0:
            print(f"step {step}/{recipe.steps} loss {shown:.4f} seconds {time.time() - started:.0f}", flush=True)
        if step % recipe.save_every == recipe.save_every - 1:
            save(model)
    save(model)
