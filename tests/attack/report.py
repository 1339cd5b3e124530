"""What a block of attacks reports, and what all blocks share."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from tests.attack.server import PROMPT_MARK, SECRETS, Server


@dataclass
class Report:
    """What a block did."""

    attempts: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def count(self, outcome: object) -> None:
        self.attempts += 1
        self.outcomes[str(outcome)] += 1

    def check_answer(self, what: object, status: int, text: str, allowed: tuple[int, ...] = ()) -> None:
        """A 5xx is wrong (unless allowed), and so is a secret or a traceback in an answer."""
        self.count(status)
        if status >= 500 and status not in allowed:
            self.wrong.append(f"{status} for {str(what)[:300]}: {text[:300]}")
        shown = [secret for secret in SECRETS if secret in text]
        if shown or "Traceback (most recent" in text:
            self.wrong.append(f"the answer to {str(what)[:200]} shows {shown or 'a traceback'}")


Block = Callable[[Server, random.Random, float], Awaitable[Report]]


def time_left(began: float, seconds: float) -> bool:
    return time.monotonic() - began < seconds


def chat(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": PROMPT_MARK}], "max_tokens": 8, **fields}
