"""The attack in full: every class again and again with new random members, and a table of what came of it.

python -m tests.attack [--minutes 30] [--seed 1] [--only "grammars"]

Exit status 1 when an answer was wrong or something was left behind.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.attack.blocks import PLATFORM, RESTARTING, SERVE
from tests.attack.report import Block
from tests.attack.server import Held, Server

ROUND_SECONDS = 15.0  # for each class in each round


@dataclass
class Totals:
    attempts: Counter[str] = field(default_factory=Counter)
    outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    held: list[tuple[str, Held, Held]] = field(default_factory=list)


async def attack(command: str, blocks: Mapping[str, Block], minutes: float, rng: random.Random, totals: Totals) -> None:
    """Run the blocks in turn against one server until the time is over."""
    async with Server(command) as server:
        deadline = time.monotonic() + minutes * 60
        first = before = server.held()
        while time.monotonic() < deadline:
            for name, block in blocks.items():
                began = time.monotonic()
                report = await block(server, random.Random(rng.random()), min(ROUND_SECONDS, minutes * 60))
                totals.attempts[name] += report.attempts
                totals.outcomes[name] = totals.outcomes.get(name, Counter()) + report.outcomes
                faults = [f"{name}: {line}" for line in report.wrong]
                faults += [f"after {name}: {line}" for line in await server.settle(before)]
                totals.faults += faults
                print(f"{name}: {report.attempts} in {time.monotonic() - began:.0f} s {faults or ''}", file=sys.stderr)
                if name in RESTARTING:
                    before = server.held()
        totals.faults += server.log_faults()
        totals.held.append((command, first, server.held()))


async def attack_all(minutes: float, seed: int, only: str | None) -> int:
    totals, rng = Totals(), random.Random(seed)
    both = {"serve": SERVE, "platform": PLATFORM}
    chosen = {
        command: {name: block for name, block in blocks.items() if only in (None, name)}
        for command, blocks in both.items()
    }
    count = sum(map(len, chosen.values()))
    for command, blocks in chosen.items():
        if blocks:
            await attack(command, blocks, minutes * len(blocks) / count, rng, totals)
    print("| class | attempts | outcomes |\n|---|---|---|")
    for name, outcomes in totals.outcomes.items():
        most = ", ".join(f"{outcome}: {number}" for outcome, number in outcomes.most_common(5))
        print(f"| {name} | {totals.attempts[name]} | {most} |")
    for command, before, after in totals.held:
        print(f"\n{command}, before: {before}\n{command}, after:  {after}")
    print(f"{len(totals.faults)} faults")
    for line in totals.faults[:40]:
        print("FAULT:", line)
    return 1 if totals.faults else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=[*SERVE, *PLATFORM])
    options = parser.parse_args()
    return asyncio.run(attack_all(options.minutes, options.seed, options.only))


if __name__ == "__main__":
    sys.exit(main())
