"""Stop strings in a stream: the text is cut exactly at a stop string, and only a possible prefix of one is held
back."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """The stop strings of one sample.

    The text is read character by character and ends at the first character that completes a stop string. Where two end
    at the same character, the longer one counts. So the result does not depend on how the text is divided into pushes,
    and a completed stop string never waits for a longer one that might still contain it.
    """

    def __init__(self, stop: Sequence[str], include_in_output: bool = False) -> None:
        self._searches = [_Search(text) for text in stop if text]
        self._include_in_output = include_in_output
        self._held = ""  # always a proper prefix of a stop string
        self._matched: str | None = None

    def push(self, text: str) -> tuple[str, str | None]:
        """The text that can be released, and the stop string once one was found. After it there is no more text."""
        if self._matched is not None:
            return "", self._matched
        found = [(end, -len(search.stop), search.stop) for search in self._searches if (end := search.push(text))]
        known = self._held + text
        if found:
            end, _, stop = min(found)
            end += len(self._held)
            self._held, self._matched = "", stop
            return known[: end if self._include_in_output else end - len(stop)], stop
        begin = len(known) - max((search.num_matched for search in self._searches), default=0)
        self._held = known[begin:]
        return known[:begin], None

    def flush(self) -> str:
        """The text held back, when the sample ends without a stop string."""
        held, self._held = self._held, ""
        return held


class _Search:
    """The Knuth-Morris-Pratt search for one stop string: each character is read once, however repetitive it is."""

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.num_matched = 0  # length of the longest prefix of `stop` that the text ends with
        self._borders = [0]  # `_border` of each length from 1 on, computed on demand

    def push(self, text: str) -> int:
        """Read more text. Returns the number of characters read when `stop` was complete; 0 if it is not complete."""
        stop, matched = self.stop, self.num_matched
        at = 0
        while at < len(text):
            if matched == 0:
                at = text.find(stop[0], at)
                if at < 0:
                    break
            else:
                while matched and stop[matched] != text[at]:
                    matched = self._border(matched)
            matched += stop[matched] == text[at]
            at += 1
            if matched == len(stop):
                return at
        self.num_matched = matched
        return 0

    def _border(self, length: int) -> int:
        """The length of the longest proper prefix of `stop[:length]` that is also its suffix."""
        stop, borders = self.stop, self._borders
        while len(borders) < length:
            border = borders[-1]
            while border and stop[border] != stop[len(borders)]:
                border = borders[border - 1]
            borders.append(border + (stop[border] == stop[len(borders)]))
        return borders[length - 1]
