"""Repetition detection: finds a pattern of tokens that comes several times in a row, as the tokens arrive."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from ember.front.api.schemas import GenerationRequest
from ember.front.errors import bad_request

MAX_PATTERN_SIZE = 1024  # bounds what a sample remembers and looks at for each token
STOP_REASON = "repetition_detected"


@dataclass(frozen=True, slots=True)
class Repetition:
    """A pattern of `min_size` to `max_size` tokens ends the output when it has come `min_count` times in a row."""

    min_size: int
    max_size: int
    min_count: int


def requested_repetition(request: GenerationRequest) -> Repetition | None:
    """The patterns to detect. None when there are none (`max_pattern_size` is 0). Raises ApiError 400."""
    given = request.repetition_detection
    if given is None:
        return None
    largest, smallest, count = given.max_pattern_size or 0, given.min_pattern_size or 0, given.min_count or 0
    if not 0 <= smallest <= largest <= MAX_PATTERN_SIZE:
        message = (
            "repetition_detection needs 0 <= min_pattern_size <= max_pattern_size <= "
            f"{MAX_PATTERN_SIZE}, got {smallest} and {largest}."
        )
        raise bad_request(message, "repetition_detection")
    if largest == 0:
        return None
    if count < 2:
        raise bad_request(f"repetition_detection.min_count must be at least 2, got {count}.", "repetition_detection")
    return Repetition(max(smallest, 1), largest, count)


class RepetitionDetector:
    """Watches one sample. The work for a token grows with the number of equal tokens among the last `max_size`."""

    def __init__(self, options: Repetition) -> None:
        self._options = options
        self._num_tokens = 0
        self._places: dict[int, deque[int]] = {}  # token id -> where it came, the last `max_size` positions
        self._runs: dict[int, int] = {}  # distance -> how many tokens up to now equal the one that far before

    def push(self, token_id: int) -> bool:
        """Takes the next token. Returns whether a pattern is complete with it."""
        options = self._options
        here = self._num_tokens
        self._num_tokens += 1
        places = self._places.setdefault(token_id, deque())
        while places and here - places[0] > options.max_size:
            places.popleft()
        self._runs = {here - place: self._runs.get(here - place, 0) + 1 for place in places}
        places.append(here)
        # A pattern of p tokens has come c times when (c - 1) * p tokens in a row equal the one p before.
        return any(
            distance >= options.min_size and run >= (options.min_count - 1) * distance
            for distance, run in self._runs.items()
        )
