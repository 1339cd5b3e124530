"""Stop strings in a stream of text: cut exactly where one appears, hold back no more than one could still need."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """The stop strings of one sample.

    The text is read character by character: it ends at the first character that completes a stop string. Where two
    end at the same character, the longer one, which begins earlier, counts. So the result does not depend on how the
    text is cut into pushes, and a completed stop string never waits for another that might still grow around it.
    """

    def __init__(self, stop: Sequence[str], include_in_output: bool = False) -> None:
        self._stop = tuple(text for text in stop if text)
        self._include_in_output = include_in_output
        self._held = ""  # always a proper prefix of a stop string
        self._matched: str | None = None

    def push(self, text: str) -> tuple[str, str | None]:
        """The text that may be shown now, and the stop string once one has appeared (from then on no more text)."""
        if self._matched is not None:
            return "", self._matched
        text = self._held + text
        match = self._first_match(text)
        if match is not None:
            start, stop = match
            self._held, self._matched = "", stop
            return text[: start + len(stop) if self._include_in_output else start], stop
        begin = self._possible_begin(text)
        self._held = text[begin:]
        return text[:begin], None

    def flush(self) -> str:
        """What was held back, when the sample ends without (more of) a stop string."""
        held, self._held = self._held, ""
        return held

    def _first_match(self, text: str) -> tuple[int, str] | None:
        """Start and text of the stop string that is complete first."""
        found = [(start, stop) for stop in self._stop if (start := text.find(stop)) >= 0]
        return min(found, key=lambda match: (match[0] + len(match[1]), match[0]), default=None)

    def _possible_begin(self, text: str) -> int:
        """Where the longest suffix of `text` begins that is a proper prefix of a stop string; len(text) if none is."""
        begin = len(text)
        for stop in self._stop:
            start = text.find(stop[0], max(0, len(text) - len(stop) + 1), begin)
            while start >= 0:
                if stop.startswith(text[start:]):
                    begin = start
                    break
                start = text.find(stop[0], start + 1, begin)
        return begin
