"""The parser of a format's calls: what begins them, and what is between them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from ember.front.text.output import Delta
from ember.front.text.tools.marks import Finder, Markers
from ember.front.text.tools.reading import Reading, Steps
from ember.front.text.tools.schema import Tools


class Dialect:
    """How the calls of one format are read with one tokenizer: what begins them, and what reads on from there.

    `read` is called behind an opener. It returns False where no call follows, and nothing was written; the opener is
    content then, and so is what follows. Once it has begun a call it returns True, whatever comes.
    """

    def __init__(
        self,
        openers: Iterable[str],
        ends: Iterable[str],
        read: Callable[[Reading, str], Steps[bool]],
    ) -> None:
        self.read = read
        openers = [mark for mark in openers if mark]
        self.openers = Finder(openers)
        self._ends = tuple(sorted({mark for mark in ends if mark}, key=len, reverse=True))
        self.openers_and_ends = Finder([*openers, *self._ends])
        # Single characters and the fences of code blocks may stand in any text.
        self._marks = [mark for mark in openers if not mark.startswith("`") and (len(mark) > 1 or not mark.isascii())]
        self.boundaries = Finder([*self._marks, *self._ends])

    def run(self, reading: Reading) -> Steps[None]:
        """Reads everything."""
        is_opened = False  # a mark that opens no call was shown: so is the end behind it
        while True:
            # An end mark that comes late, behind a call that was left, is no content.
            finder = self.openers_and_ends if reading.num_calls else self.openers
            place, mark = finder.find(reading.text, reading.at, reading.is_ended)
            reading.content(reading.text[reading.at : place])
            reading.at = place
            if mark is None:
                if reading.is_ended:
                    reading.close()
                    return
                yield
                continue
            reading.at += len(mark)
            if mark in self._ends and reading.num_calls and not self._opens(mark):
                if is_opened:
                    reading.content(mark)
                is_opened = False
                continue
            reading.begin(len(mark))
            is_marked = mark in self._marks
            if (is_marked and (yield from self._is_empty(reading, mark))) or (yield from self.read(reading, mark)):
                reading.keep()
                is_opened = False
            else:
                reading.go_back()
                reading.content(mark)
                reading.at += len(mark)
                is_opened = is_marked
            if not reading.may_repeat():
                return (yield from self._run_out(reading))

    def _is_empty(self, reading: Reading, mark: str) -> Steps[bool]:
        """Takes the opener when it is there twice, and the rest of a block without calls, which is no content."""
        behind = reading.num_tried
        yield from reading.blanks()
        while (yield from reading.take(mark)):
            behind = reading.num_tried
            yield from reading.blanks()
        while (yield from reading.take_any(self._marks)) is not None:
            yield from reading.blanks()
        is_empty = False
        if (yield from reading.take("[")):
            yield from reading.blanks()
            is_empty = yield from reading.take("]")
            if not is_empty:
                reading.return_to(behind)
                return False
        while True:
            end = reading.num_tried
            yield from reading.blanks()
            if (yield from reading.take_any(self._ends)) is None:
                break
            is_empty = True
        reading.return_to(end if is_empty else behind)
        return is_empty

    def _run_out(self, reading: Reading) -> Steps[None]:
        """What comes now is content."""
        while True:
            reading.content(reading.text[reading.at :])
            reading.at = len(reading.text)
            if reading.is_ended:
                return reading.close()
            yield

    def _opens(self, mark: str) -> bool:
        return self.openers.find(mark, 0, True) == (0, mark)


class CallParser:
    """See `ember.front.text.tools.ToolParser`."""

    def __init__(self, dialect: Dialect, markers: Markers, tools: Tools) -> None:
        self._reading = Reading(markers, tools, dialect.boundaries)
        self._steps = dialect.run(self._reading)
        next(self._steps)

    def push(self, parts: Sequence[str]) -> list[Delta]:
        self._reading.add(parts)
        next(self._steps)
        return self._reading.take_deltas()

    @property
    def num_calls(self) -> int:
        return self._reading.num_calls

    def release(self) -> list[Delta]:
        return self._reading.take_deltas(is_released=True)

    def finish(self) -> list[Delta]:
        self._reading.is_ended = True
        next(self._steps, None)
        return self._reading.take_deltas()
