"""A model's tokenizer as the metadata of a GGUF file (`ember.gguf.vocabulary` has the entries).

A byte-level tokenizer is written if one of the kinds in `ember.gguf.pretokenizers` splits texts as it does, and one of
characters with bytes for the rest if its merges are those of SentencePiece's scores. What is written is read again and
has to give the same ids.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Regex, pre_tokenizers

from ember.engine.errors import ModelError
from ember.front.text.tokenizer import Tokenizer
from ember.gguf.pretokenizers import PRE_TOKENIZERS
from ember.gguf.tokenizer import load_tokenizer
from ember.gguf.vocabulary import BYTE, CONTROL, MERGES, MODEL, NORMAL, PRE, SCORES, TOKENS, TYPES, UNKNOWN, UNUSED
from ember.gguf.vocabulary import USER_DEFINED as USER
from ember.gguf.write import write_gguf

PROBES = (
    "Hello world, it's 12345 o'clock; we'LL go!!  \n\n  next\tline  \r\n x=3.14;foo_bar(baz)[0]//c",
    "Größe ß; Привет МИР 你好，世界。日本語 한국어 🦊 naïve café CamelCaseWord HTTPServer don't I'M 1234567",
    " leading and trailing   \n\n\n   a  b\t\tc ½ ² e\u0301 \u0915\u094d\u0937 !?...--- @#$%^&*() <tag> /path/to\\x",
    'def f(items):\n    return [item.strip() for item in items if item != ""]\n',
    "",
)


def tokenizer_metadata(directory: Path, rows: int, scratch: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """The entries for the tokenizer of a directory. `rows`: of the embedding. `scratch`: a directory for a file that is
    read again and removed. `say` is called with a line if texts are split otherwise than the tokenizer does.

    Raises ModelError if the tokenizer cannot be written, TokenizerError or GgufError if it cannot be read.
    """
    tokenizer = Tokenizer.load(directory)
    backend = tokenizer._backend
    content = json.loads(backend.to_str())
    model = content["model"]
    if model.get("type") != "BPE":
        raise ModelError(f"a tokenizer of the kind {model.get('type')} cannot be written as that of a GGUF file")
    values = _tokens(content, rows) | _roles(tokenizer)
    ids = backend.encode("a").ids
    for name, at in (("bos", 0), ("eos", -1)):
        token_id = values.get(f"tokenizer.ggml.{name}_token_id")
        values[f"tokenizer.ggml.add_{name}_token"] = len(ids) > 1 and token_id == ids[at]
    values |= _templates(tokenizer)
    merges = [tuple(each) if isinstance(each, list) else tuple(each.split(" ", 1)) for each in model["merges"]]
    if model.get("byte_fallback"):
        for kind in _sentencepiece(merges, values[TOKENS]):
            if _differences(values | kind, tokenizer, scratch / "tokenizer.gguf", merges) == 0:
                return values | kind
        raise ModelError("the merges of the model's tokenizer.json are not those of scores: it cannot be written")
    if "ByteLevel" not in json.dumps(content.get("decoder")):
        raise ModelError("the model's tokenizer.json is of no kind that GGUF files have: it cannot be written")
    split, name = _closest(backend, content)
    kind = {MODEL: "gpt2", PRE: name, MERGES: [" ".join(merge) for merge in merges]}
    wrong = _differences(values | kind, tokenizer, scratch / "tokenizer.gguf", merges)
    if split or wrong:
        say(
            f"no kind of tokenizer in GGUF files splits texts as the model's does; {name} is written, which is the "
            f"closest ({split} of {_count(backend)} parts of a test text differ). TOKENIZER_NAME={directory} serves "
            "the file with the model's own"
        )
    return values | kind


def _tokens(content: dict[str, Any], rows: int) -> dict[str, Any]:
    model = content["model"]
    ids: dict[str, int] = dict(model["vocab"]) | {each["content"]: each["id"] for each in content["added_tokens"]}
    if max(ids.values()) >= rows:
        raise ModelError(f"the tokenizer has ids up to {max(ids.values())}, but the model has {rows} rows (vocab_size)")
    tokens, kinds = [f"[PAD{number}]" for number in range(rows)], [UNUSED] * rows
    for token, number in ids.items():
        tokens[number], kinds[number] = token, NORMAL
    if model.get("byte_fallback"):
        for number in range(256):
            if (token_id := ids.get(f"<0x{number:02X}>")) is not None:
                kinds[token_id] = BYTE
    for each in content["added_tokens"]:
        kinds[each["id"]] = CONTROL if each["special"] else USER
    if (unknown := model.get("unk_token")) in ids:
        kinds[ids[unknown]] = UNKNOWN
    return {TOKENS: tokens, TYPES: kinds}


def _roles(tokenizer: Tokenizer) -> dict[str, int]:
    found = {}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        token = tokenizer.special_tokens.get(f"{name}_token")
        token_id = None if token is None else tokenizer.token_id(token)
        if token_id is not None:
            found[f"tokenizer.ggml.{key}_token_id"] = token_id
    return found


def _templates(tokenizer: Tokenizer) -> dict[str, str]:
    template = tokenizer.chat_template
    if template is None or isinstance(template, str):
        return {} if template is None else {"tokenizer.chat_template": template}
    return {
        "tokenizer.chat_template" + ("" if name == "default" else f".{name}"): text for name, text in template.items()
    }


def _sentencepiece(merges: list[tuple[str, ...]], tokens: list[str]) -> Iterator[dict[str, Any]]:
    """The entries of a tokenizer in which the token with the highest score is merged first."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault("".join(merge), rank)
    worst = -float(len(merges) + 1)
    scores = [-float(ranks[token]) if token in ranks else worst for token in tokens]
    for adds_space in (True, False):
        yield {MODEL: "llama", PRE: "default", SCORES: scores, "tokenizer.ggml.add_space_prefix": adds_space}


def _closest(backend: tokenizers.Tokenizer, content: dict[str, Any]) -> tuple[int, str]:
    """The kind of byte-level tokenizers that splits the probes most like this one, and how many parts differ."""
    is_nfc = (content.get("normalizer") or {}).get("type") == "NFC"
    flags = (bool(content["model"].get("ignore_merges")), is_nfc)
    found = []
    for name, kind in PRE_TOKENIZERS.items():
        if not kind.is_bytes:
            continue
        cuts = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in kind.patterns]
        bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        theirs = pre_tokenizers.Sequence([*cuts, bytes_of])
        wrong = sum(len(set(_pieces(backend.pre_tokenizer, probe)) ^ set(_pieces(theirs, probe))) for probe in PROBES)
        found.append((wrong, (kind.ignores_merges, kind.is_nfc) != flags, name))
    wrong, differs, name = min(found, key=lambda item: item[:2])
    return wrong + differs, name


def _count(backend: tokenizers.Tokenizer) -> int:
    return sum(len(_pieces(backend.pre_tokenizer, probe)) for probe in PROBES)


def _pieces(pre_tokenizer: Any, text: str) -> list[tuple[str, tuple[int, int]]]:
    return [] if pre_tokenizer is None else list(pre_tokenizer.pre_tokenize_str(text))


def _differences(values: dict[str, Any], tokenizer: Tokenizer, file: Path, merges: list[tuple[str, ...]]) -> int:
    """How many probes the tokenizer of the entries encodes in another way; all if it has other merges."""
    write_gguf(file, {"general.architecture": "llama", **values}, [])
    try:
        backend = load_tokenizer(file).backend
    finally:
        file.unlink()
    if SCORES in values:
        made = [tuple(each) for each in json.loads(backend.to_str())["model"]["merges"]]
        pairs = zip(values[TOKENS], values[TYPES], strict=True)
        added = {token for token, kind in pairs if kind != NORMAL}  # found before a text is split: nothing makes them
        used = [merge for merge in merges if "".join(merge) not in added]
        # Several merges that make one token have one score, so their own order is not in the file; of those BPE applies
        # one, and a file's tokenizer has that alone.
        order = dict.fromkeys(map("".join, made))
        if not set(made) <= set(used) or list(order) != [
            token for token in dict.fromkeys(map("".join, used)) if token in order
        ]:
            return len(PROBES)
    return sum(backend.encode(probe).ids != tokenizer.encode(probe) for probe in PROBES)
