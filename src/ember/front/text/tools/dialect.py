"""The parser of a format's calls: it finds their openers and the content between them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from ember.front.text.output import Delta
from ember.front.text.tools.marks import Finder, Markers
from ember.front.text.tools.scanner import CallScanner, Steps
from ember.front.text.tools.schema import Tools


class Dialect:
    """The calls of one format in one tokenizer: the marks that begin them, and the reader of a call.

    `read` is called after an opener. It returns False, without output, if no call follows. The opener and the text
    after it are content then. Once it has begun a call it returns True.
    """

    def __init__(
        self,
        openers: Iterable[str],
        ends: Iterable[str],
        read: Callable[[CallScanner, str], Steps[bool]],
    ) -> None:
        self.read = read
        openers = [mark for mark in openers if mark]
        self.openers = Finder(openers)
        self._ends = tuple(sorted({mark for mark in ends if mark}, key=len, reverse=True))
        self.openers_and_ends = Finder([*openers, *self._ends])
        # Single characters and code fences may be in any text.
        self._marks = [mark for mark in openers if not mark.startswith("`") and (len(mark) > 1 or not mark.isascii())]
        self.boundaries = Finder([*self._marks, *self._ends])

    def run(self, scanner: CallScanner) -> Steps[None]:
        """Read the whole output."""
        is_opened = False  # whether an opener without a call was content, so that its end mark is too
        while True:
            # A late end mark, after a call that was ended without it, is not content.
            finder = self.openers_and_ends if scanner.num_calls else self.openers
            place, mark = finder.find(scanner.text, scanner.at, scanner.is_ended)
            scanner.content(scanner.text[scanner.at : place])
            scanner.at = place
            if mark is None:
                if scanner.is_ended:
                    scanner.close()
                    return
                yield
                continue
            scanner.at += len(mark)
            if mark in self._ends and scanner.num_calls and not self._opens(mark):
                if is_opened:
                    scanner.content(mark)
                is_opened = False
                continue
            scanner.begin(len(mark))
            is_marked = mark in self._marks
            if (is_marked and (yield from self._is_empty(scanner, mark))) or (yield from self.read(scanner, mark)):
                scanner.keep()
                is_opened = False
            else:
                scanner.go_back()
                scanner.content(mark)
                scanner.at += len(mark)
                is_opened = is_marked
            if not scanner.may_repeat():
                return (yield from self._run_out(scanner))

    def _is_empty(self, scanner: CallScanner, mark: str) -> Steps[bool]:
        """Skip a repeated opener, and the rest of a block without calls, which is not content."""
        behind = scanner.num_tried
        yield from scanner.blanks()
        while (yield from scanner.take(mark)):
            behind = scanner.num_tried
            yield from scanner.blanks()
        while (yield from scanner.take_any(self._marks)) is not None:
            yield from scanner.blanks()
        is_empty = False
        if (yield from scanner.take("[")):
            yield from scanner.blanks()
            is_empty = yield from scanner.take("]")
            if not is_empty:
                scanner.return_to(behind)
                return False
        while True:
            end = scanner.num_tried
            yield from scanner.blanks()
            if (yield from scanner.take_any(self._ends)) is None:
                break
            is_empty = True
        scanner.return_to(end if is_empty else behind)
        return is_empty

    def _run_out(self, scanner: CallScanner) -> Steps[None]:
        """Read content."""
        while True:
            scanner.content(scanner.text[scanner.at :])
            scanner.at = len(scanner.text)
            if scanner.is_ended:
                return scanner.close()
            yield

    def _opens(self, mark: str) -> bool:
        return self.openers.find(mark, 0, True) == (0, mark)


class CallParser:
    """See `ember.front.text.tools.ToolParser`."""

    def __init__(self, dialect: Dialect, markers: Markers, tools: Tools) -> None:
        self._scanner = CallScanner(markers, tools, dialect.boundaries)
        self._steps = dialect.run(self._scanner)
        next(self._steps)

    def push(self, parts: Sequence[str]) -> list[Delta]:
        self._scanner.add(parts)
        next(self._steps)
        return self._scanner.take_deltas()

    @property
    def num_calls(self) -> int:
        return self._scanner.num_calls

    def release(self) -> list[Delta]:
        return self._scanner.take_deltas(is_released=True)

    def finish(self) -> list[Delta]:
        self._scanner.is_ended = True
        next(self._steps, None)
        return self._scanner.take_deltas()
