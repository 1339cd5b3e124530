"""Compile a grammar's text to llguidance's matcher, with errors that tell the client what to change.

Nothing here runs in the engine's own process: `grammars.host` calls it in a process for each grammar, since some
grammars keep the library busy for hours or crash its process. llguidance's own limits are reached first, because their
errors name the cause.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence as Items
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ember import untrusted_json
from ember.engine.errors import GrammarError
from ember.regular_file import MAX_JSON_BYTES, MAX_TOKENIZER_BYTES, read_regular
from ember.wire import Grammar

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

MAX_GRAMMAR_BYTES = 256 * 1024
MAX_ERROR_CHARS = 400
# llguidance's limits; but for the states of its lexer, of 1 to 2 kB each, they are its defaults.
MAX_ITEMS_IN_ROW = 2_000
INITIAL_LEXER_FUEL = 1_000_000
STEP_LEXER_FUEL = 200_000
STEP_MAX_ITEMS = 50_000
MAX_LEXER_STATES = 100_000
MAX_GRAMMAR_SIZE = 500_000


def size_error(grammar: Grammar) -> str | None:
    """Why a grammar is too large to be compiled; None if it is not."""
    size = len(grammar.text.encode())
    return f"it has {size} bytes, at most {MAX_GRAMMAR_BYTES} are allowed" if size > MAX_GRAMMAR_BYTES else None


def compile_grammar(tokenizer: LLTokenizer, grammar: Grammar) -> LLMatcher:
    """A matcher at the start of the grammar, to be copied for each sample. Raises GrammarError."""
    from llguidance import LLMatcher, LLParserLimits

    limits = LLParserLimits(
        max_items_in_row=MAX_ITEMS_IN_ROW,
        initial_lexer_fuel=INITIAL_LEXER_FUEL,
        step_lexer_fuel=STEP_LEXER_FUEL,
        step_max_items=STEP_MAX_ITEMS,
        max_lexer_states=MAX_LEXER_STATES,
        max_grammar_size=MAX_GRAMMAR_SIZE,
        verbose_errors=False,
    )
    matcher = LLMatcher(tokenizer, _source(grammar), log_level=0, limits=limits)
    if not matcher.is_error():
        matcher.compute_bitmask()  # the first mask builds much of the lexer, which copies share
    if matcher.is_error():
        raise GrammarError(_in_words(matcher.get_error(), grammar))
    return matcher


def load_tokenizer(directory: Path, vocab_size: int, eos_token_ids: Items[int]) -> LLTokenizer:
    """llguidance's view of a model's tokenizer, for masks of `vocab_size` bits, or more if the tokenizer has more
    tokens than the logits have columns. `directory`: or a GGUF file. Raises GrammarError if it has no tokenizer that
    can be read."""
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
    """The tokenizer of tokenizer.json (or vocab.json and merges.txt), with the added tokens of
    tokenizer_config.json. `directory`: or a GGUF file, which has a tokenizer itself."""
    if directory.is_file():
        from ember.gguf.tokenizer import load_tokenizer as load_gguf

        return load_gguf(directory).backend.to_str()
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
            except Exception as error:  # llguidance raises bare Exception, and RecursionError for deep nesting
                raise GrammarError(_short(str(error))) from None
    raise GrammarError(f"there is no grammar of the kind {grammar.kind[:32]!r}")


_DRAWING = re.compile(r"\n *[0-9]+ \| .*", re.DOTALL)  # a drawing of the position in generated rules
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
_INVALID_REGEX = re.compile(r'at ([0-9]+)\([0-9]+\): invalid regex "(.*)" \(in regex\): (.*)', re.DOTALL)
_EMPTY = {
    "json_schema": "no value matches the schema, or it refers to itself without end",
    "regex": "no text matches the regular expression",
}


def _in_words(error: str, grammar: Grammar) -> str:
    """The compiler's error message, with advice where it describes only the compiler's internals."""
    if "NoExtensionBias" in error:
        return _EMPTY.get(grammar.kind, "no text matches the grammar")
    invalid_regex = _INVALID_REGEX.match(error)
    if invalid_regex is not None:
        return _regex_error(invalid_regex, grammar)
    owner = _owner(error, grammar)
    _, is_json, reason = error.partition("failed to compile JSON schema: ")
    for part, words in _IN_WORDS:
        if part in error:
            return f"{owner}{words}"
    return _short(f"{owner or 'in a JSON schema: '}{_DRAWING.sub('', reason)}" if is_json else error)


def _regex_error(found: re.Match[str], grammar: Grammar) -> str:
    """The regex parser's error message without its drawing of the position."""
    line, regex, error = found.groups()
    _, _, reason = _DRAWING.sub("", error).rpartition("\nerror: ")
    if "lookarounds not supported" in error:
        reason = r"anchors and word boundaries (`^`, `$`, `\b`) inside a regular expression are not supported"
    if grammar.kind == "regex":
        return _short(reason)
    return _short(f"the regular expression {regex[:64]!r} in line {line}: {reason}")


def _owner(error: str, grammar: Grammar) -> str:
    """The name of the schema with the error, in a grammar of several. It is in a comment on the schema's line."""
    place = re.match(r"at ([0-9]+)\(", error)
    if place is None:
        return ""
    line = "".join(grammar.text.split("\n")[int(place[1]) - 1 : int(place[1])])
    names = set(re.findall(r'"\$comment":("(?:[^"\\]|\\.)*")', line))
    return f"in the schema of {json.loads(names.pop())[:64]!r}: " if len(names) == 1 else ""


def _short(error: str) -> str:
    """An error of several lines, with drawings of the place, as one line."""
    text = " ".join(error.partition("<state>")[0].replace("<non-verbose/>", "").split())
    return text if len(text) <= MAX_ERROR_CHARS else f"{text[:MAX_ERROR_CHARS]}..."
