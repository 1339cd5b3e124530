"""Compiles grammars beside the engine's steps, and holds the sequences that wait for theirs.

llguidance does the work. It is imported, and its view of the tokenizer made, when the first grammar arrives and not
before. Threads compile; their work is bounded by llguidance's own limits, and nobody waits longer than
`COMPILE_TIMEOUT_S`. What is wrong with a grammar is the client's to mend: it ends as an error that names the field.
"""

from __future__ import annotations

import json
import re
import time
from collections import OrderedDict
from collections.abc import Sequence as Items
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from ember import untrusted_json
from ember.regular_file import MAX_JSON_BYTES, MAX_TOKENIZER_BYTES, read_regular
from ember.wire import Grammar

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

    from ember.engine.core.sequence import Sequence

COMPILE_TIMEOUT_S = 20.0  # from the request's arrival, the first one's wait for the tokenizer included
MAX_GRAMMAR_BYTES = 256 * 1024
MAX_ERROR_CHARS = 400
NUM_THREADS = 2
NUM_CACHED = 64  # compiled grammars, least recently used first to go


class GrammarError(Exception):
    """A grammar that cannot be used; a reason for the client, to stand behind the name of the field."""


class GrammarCompiler:
    """Turns grammars into matchers for one tokenizer. `submit` and the futures it returns never block."""

    def __init__(self, tokenizer_dir: Path, vocab_size: int, eos_token_ids: Items[int]) -> None:
        self._tokenizer_dir = tokenizer_dir
        self._vocab_size = vocab_size  # rows of the logits
        self._eos_token_ids = eos_token_ids  # the model's own list, to which the tokenizer's end token may come
        self._tokenizer: LLTokenizer | None = None
        self._tokenizer_lock = Lock()
        self._threads: ThreadPoolExecutor | None = None
        self._compiled: OrderedDict[tuple[str, str], Future[LLMatcher]] = OrderedDict()

    def submit(self, grammar: Grammar) -> Future[LLMatcher]:
        """The future gives a matcher at its start, to be copied for each sample, or raises GrammarError."""
        key = (grammar.kind, grammar.text)
        future = self._compiled.get(key)
        if future is not None and not (future.done() and future.exception()):
            self._compiled.move_to_end(key)
            return future
        if self._threads is None:
            self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="grammar")
        future = self._compiled[key] = self._threads.submit(self._compile, grammar)
        self._compiled.move_to_end(key)
        if len(self._compiled) > NUM_CACHED:
            self._compiled.popitem(last=False)
        return future

    @property
    def num_words(self) -> int:
        """Of a mask's row: one bit for each token."""
        num_tokens = self._vocab_size if self._tokenizer is None else self._tokenizer.vocab_size
        return -(-num_tokens // 32)

    def _compile(self, grammar: Grammar) -> LLMatcher:
        """Raises GrammarError."""
        if len(grammar.text.encode()) > MAX_GRAMMAR_BYTES:
            raise GrammarError(f"it has {len(grammar.text.encode())} bytes, at most {MAX_GRAMMAR_BYTES} are allowed")
        tokenizer = self._load_tokenizer()
        from llguidance import LLMatcher

        matcher = LLMatcher(tokenizer, _source(grammar), log_level=0)
        if not matcher.is_error():
            matcher.compute_bitmask()  # the first mask builds much of the lexer, which copies share
        if matcher.is_error():
            raise GrammarError(_in_words(matcher.get_error(), grammar))
        return matcher

    def _load_tokenizer(self) -> LLTokenizer:
        with self._tokenizer_lock:
            if self._tokenizer is None:
                self._tokenizer = load_tokenizer(self._tokenizer_dir, self._vocab_size, self._eos_token_ids)
            return self._tokenizer


def load_tokenizer(directory: Path, vocab_size: int, eos_token_ids: Items[int]) -> LLTokenizer:
    """llguidance's view of a model's tokenizer, for masks of `vocab_size` bits (more, where the tokenizer has more
    tokens than the logits have rows). Raises GrammarError when the directory has no tokenizer it can read."""
    from llguidance import LLTokenizer

    try:
        text = _tokenizer_json(directory)
        eos_tokens = list(eos_token_ids) or None
        try:
            return LLTokenizer(text, n_vocab=vocab_size, eos_token=eos_tokens)
        except ValueError as error:
            if "vocab size too small" not in str(error):
                raise
            return LLTokenizer(text, eos_token=eos_tokens)
    except (OSError, ValueError, KeyError) as error:
        message = "output cannot be constrained with this model: its tokenizer.json cannot be used"
        raise GrammarError(f"{message} ({_short(str(error))})") from None


def _tokenizer_json(directory: Path) -> str:
    """tokenizer.json, or what stands for it, with the added tokens that only tokenizer_config.json knows."""
    if (directory / "tokenizer.json").exists():
        text = read_regular(directory / "tokenizer.json", MAX_TOKENIZER_BYTES).decode("utf-8")
    else:
        from ember.byte_level_bpe import load_vocabulary

        text = load_vocabulary(directory).backend.to_str()
    config_path = directory / "tokenizer_config.json"
    if not config_path.is_file():
        return text
    listed: dict[str, Any] = untrusted_json.read_file(config_path, MAX_JSON_BYTES).get("added_tokens_decoder") or {}
    tokenizer = json.loads(text)
    known = {entry["id"] for entry in tokenizer.get("added_tokens", ())}
    missing = sorted((int(index), entry) for index, entry in listed.items() if int(index) not in known)
    if not missing:
        return text
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    tokenizer["added_tokens"] += [{"id": index, **flags, **entry} for index, entry in missing]
    return json.dumps(tokenizer)


def _source(grammar: Grammar) -> str:
    """The grammar in llguidance's own form. Raises GrammarError."""
    from llguidance import LLMatcher
    from llguidance.gbnf_to_lark import gbnf_to_lark

    match grammar.kind:
        case "json_schema":
            try:
                return LLMatcher.grammar_from_json_schema(grammar.text)
            except ValueError as error:
                raise GrammarError(_in_words(str(error), grammar)) from None
        case "regex":
            return LLMatcher.grammar_from_regex(grammar.text)
        case "lark" | "json":
            return LLMatcher.grammar_from_lark(grammar.text)
        case "gbnf":
            try:
                return LLMatcher.grammar_from_lark(gbnf_to_lark(grammar.text))
            except Exception as error:  # it raises bare Exception, and RecursionError for deep nesting
                raise GrammarError(_short(str(error))) from None
    raise GrammarError(f"there is no grammar of the kind {grammar.kind[:32]!r}")


_DRAWING = re.compile(r"\n *[0-9]+ \| .*", re.DOTALL)  # of the place in the grammar, which the client did not write
_IN_WORDS = (
    ("Regex is empty", "no text matches one of its patterns"),
    (
        "coerce_one_of",
        "the branches of a `oneOf` must exclude each other; use `anyOf`, or a property that each branch requires with "
        "a `const` of its own",
    ),
    (
        "Failed to generate regex for",
        "a bound of a number is too large, or bounds leave nothing between them; bounds of integers are within 64 bits",
    ),
)
_EMPTY = {
    "json_schema": "no value matches the schema, or it refers to itself without end",
    "regex": "no text matches the regular expression",
}


def _in_words(error: str, grammar: Grammar) -> str:
    """What the compiler says, with what to change where its own words are of its insides."""
    if "NoExtensionBias" in error:
        return _EMPTY.get(grammar.kind, "no text matches the grammar")
    owner = _owner(error, grammar)
    _, is_json, reason = error.partition("failed to compile JSON schema: ")
    for part, words in _IN_WORDS:
        if part in error:
            return f"{owner}{words}"
    return _short(f"{owner or 'in a JSON schema: '}{_DRAWING.sub('', reason)}" if is_json else error)


def _owner(error: str, grammar: Grammar) -> str:
    """Whose schema is at fault, in a grammar of several: its line has the name in a comment."""
    place = re.match(r"at ([0-9]+)\(", error)
    if place is None:
        return ""
    line = "".join(grammar.text.split("\n")[int(place[1]) - 1 : int(place[1])])
    names = set(re.findall(r'"\$comment":("(?:[^"\\]|\\.)*")', line))
    return f"in the schema of {json.loads(names.pop())[:64]!r}: " if len(names) == 1 else ""


def _short(error: str) -> str:
    """An error of several lines, with drawings of the place, as one line."""
    text = " ".join(error.partition("<state>")[0].split())
    return text if len(text) <= MAX_ERROR_CHARS else f"{text[:MAX_ERROR_CHARS]}..."


@dataclass(slots=True)
class Compiled:
    """The samples of one request, and the matcher they start with or why there is none."""

    sequences: list[Sequence]
    matcher: LLMatcher | None
    error: str | None


@dataclass(slots=True)
class _Waiting:
    sequences: list[Sequence]
    future: Future[LLMatcher]
    deadline: float


class CompilingRequests:
    """The requests whose grammar is being compiled. They are in no queue of the scheduler yet."""

    def __init__(self, compiler: GrammarCompiler, timeout_s: float = COMPILE_TIMEOUT_S) -> None:
        self._compiler = compiler
        self._timeout_s = timeout_s
        self._waiting: list[_Waiting] = []

    def __len__(self) -> int:
        """How many sequences wait."""
        return sum(not sequence.is_finished for waiting in self._waiting for sequence in waiting.sequences)

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, sequences: list[Sequence], grammar: Grammar) -> None:
        deadline = time.monotonic() + self._timeout_s
        self._waiting.append(_Waiting(sequences, self._compiler.submit(grammar), deadline))

    def pause(self, seconds: float) -> None:
        """Sleep until one of them is ready, at most that long."""
        wait([waiting.future for waiting in self._waiting], seconds, FIRST_COMPLETED)

    def take(self) -> list[Compiled]:
        """The requests that need not wait any longer. Samples that were aborted meanwhile are left out."""
        taken: list[Compiled] = []
        still = []
        for waiting in self._waiting:
            waiting.sequences = [sequence for sequence in waiting.sequences if not sequence.is_finished]
            if not waiting.sequences:
                continue
            if waiting.future.done():
                taken.append(_result(waiting))
            elif time.monotonic() > waiting.deadline:
                error = f"it was not compiled within {self._timeout_s:g} seconds; make it smaller"
                taken.append(Compiled(waiting.sequences, None, error))
            else:
                still.append(waiting)
        self._waiting = still
        return taken


def _result(waiting: _Waiting) -> Compiled:
    error = waiting.future.exception()
    if error is None:
        return Compiled(waiting.sequences, waiting.future.result(), None)
    if isinstance(error, GrammarError):
        return Compiled(waiting.sequences, None, str(error))
    # A fault of the library, a panic too, which is no Exception, must not end the engine.
    return Compiled(waiting.sequences, None, f"{type(error).__name__}: {_short(str(error))}")
