"""A prepared form of a large tokenizer.json, which loads in two thirds of the time: beside the file or in a cache.
That of a GGUF file's tokenizer is not searched for merges again.

The library parses JSON through two intermediate forms. A prepared file has the vocabulary as text and the merges as
numbers, from which the library's constructor makes the same model. It is stored only if the library serialises the
resulting tokenizer exactly like the original one. It has the digest of its tokenizer.json (or of a GGUF file's
metadata, with that of the code that makes a tokenizer of it) and the library's version, and is used for no other.

    magic, SHA-256 of the rest, length of the header, header (JSON), tokens in the order of their ids (UTF-8, with a
    separator), merges (two ids each, uint32)

The image's build prepares the tokenizer of a model that it bakes; a worker does it in an idle moment after its first
answer, in a process of its own: `python -m ember.front.text.prepared_tokenizer SOURCE INTO`.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import sys
from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, models

from ember import untrusted_json
from ember.front.text.panics import is_panic
from ember.regular_file import MAX_TOKENIZER_BYTES, read_regular

MIN_BYTES = 1 << 20  # of a tokenizer.json; a smaller one loads in some hundredths of a second
BESIDE = "tokenizer.ember"  # the name of the prepared file beside tokenizer.json
_MAGIC = b"ember tokenizer 1\n"
_SEPARATORS = ("\n", "\0", "\x01", "\x1f", "\ue000", "\uffff")
_OPTIONS = (
    "dropout",
    "unk_token",
    "continuing_subword_prefix",
    "end_of_word_suffix",
    "fuse_unk",
    "byte_fallback",
    "ignore_merges",
)
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


class NotPreparedError(Exception):
    """The tokenizer has no prepared form. The message is one line."""


def cache_directories(base_path: str | None) -> list[Path]:
    """The directories of prepared tokenizers, of which the first writable one is written: the volume, if one is
    mounted, then the user's cache."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    volumes = [Path(base_path)] if base_path and Path(base_path).is_dir() else []
    return [directory / "ember" / "tokenizers" for directory in (*volumes, Path(home))]


def load(source: Path, caches: Iterable[Path] = ()) -> tokenizers.Tokenizer | None:
    """The tokenizer of `source`, a tokenizer.json, from its prepared form; None if there is none. Raises OSError if
    `source` itself cannot be read."""
    places = [place for place in _places(source, caches) if place.is_file()]
    if not places:
        return None
    return _first_of(places, _digest(read_regular(source, MAX_TOKENIZER_BYTES)))


def load_gguf(source: Path, digest: str, caches: Iterable[Path] = ()) -> tokenizers.Tokenizer | None:
    """The tokenizer of a GGUF file whose metadata have this digest, from its prepared form; None if there is none."""
    return _first_of(_places(source, caches), digest)


def _first_of(places: Iterable[Path], digest: str) -> tokenizers.Tokenizer | None:
    for place in places:
        try:
            with _no_collections():
                return _read(read_regular(place, MAX_TOKENIZER_BYTES), digest)
        except BaseException as error:  # the library raises bare Exception, and panics
            if not isinstance(error, Exception) and not is_panic(error):
                raise
            continue  # made for another file or version, or damaged: try the next one
    return None


def prepare(source: Path, into: Path) -> None:
    """Write the prepared form of a tokenizer.json, or of a GGUF file's tokenizer, to the file `into`. Raises
    NotPreparedError, and OSError."""
    original, digest = _original(source)
    text = original.to_str()
    content = _written(json.loads(text), digest)
    again = _read(content, digest)
    if again.to_str() != text:
        raise NotPreparedError(f"{source}: what is made of the prepared form is not the same tokenizer")
    into.parent.mkdir(parents=True, exist_ok=True)
    partial = into.with_name(f"{into.name}.{os.getpid()}")
    try:
        partial.write_bytes(content)
        partial.replace(into)  # atomic: another worker may be starting
    finally:
        partial.unlink(missing_ok=True)


def _original(source: Path) -> tuple[tokenizers.Tokenizer, str]:
    """A tokenizer that is not prepared, and the digest of what it is made from. Raises NotPreparedError, OSError."""
    if source.name == "tokenizer.json":
        data = read_regular(source, MAX_TOKENIZER_BYTES)
        return tokenizers.Tokenizer.from_str(data.decode()), _digest(data)
    from ember.gguf.header import GgufError
    from ember.gguf.tokenizer import load_tokenizer

    digests: list[str] = []
    try:
        made = load_tokenizer(source, digests.append)
    except GgufError as error:
        raise NotPreparedError(str(error)) from None
    if not digests:
        raise NotPreparedError(f"{source}: its tokenizer is too small to need a prepared form")
    return made.backend, digests[0]


def place_in(caches: Iterable[Path], source: Path) -> Path | None:
    """The file for the prepared form of `source`; None if no cache directory can be written."""
    for directory in caches:
        nearest = next(parent for parent in (directory, *directory.parents) if parent.exists())
        if nearest.is_dir() and os.access(nearest, os.W_OK):
            return _cached(source, directory)
    return None


def _cached(source: Path, directory: Path) -> Path:
    return directory / f"{_digest(os.fsencode(source.absolute()))[:32]}.ember"


def _places(source: Path, caches: Iterable[Path]) -> Iterator[Path]:
    if source.name == "tokenizer.json":
        yield source.with_name(BESIDE)
    for directory in caches:
        yield _cached(source, directory)


def _digest(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()


@contextmanager
def _no_collections() -> Iterator[None]:
    """Disable garbage collection: several hundred thousand objects are made, and none of them is garbage."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _written(original: dict[str, Any], digest: str) -> bytes:
    """The prepared form of a tokenizer that the library serialised. Raises NotPreparedError."""
    model = original["model"]
    if model.get("type") != "BPE":
        raise NotPreparedError(f"its model is {model.get('type')}, not BPE")
    vocab: dict[str, int] = model["vocab"]
    names = sorted(vocab, key=vocab.__getitem__)
    if [vocab[name] for name in names] != list(range(len(names))):
        raise NotPreparedError("the ids of its vocabulary are not 0, 1, 2 ...")
    separator = next((mark for mark in _SEPARATORS if not any(mark in name for name in names)), None)
    if separator is None or len(names) < 2:
        raise NotPreparedError("its tokens hold every separator")
    merges = array("I", (vocab[part] for pair in model["merges"] for part in pair)).tobytes()
    tokens = separator.join(names).encode()
    frame = {**original, "added_tokens": [], "model": {**model, "vocab": {}, "merges": []}}
    header = {
        "library": tokenizers.__version__,
        "source": digest,
        "separator": separator,
        "bytes": len(tokens),
        "frame": json.dumps(frame),
        "options": {name: model[name] for name in _OPTIONS if model.get(name) is not None},
        "added": [{key: token[key] for key in ("content", *_FLAGS)} for token in original["added_tokens"]],
    }
    encoded = json.dumps(header).encode()
    rest = b"".join((len(encoded).to_bytes(4, sys.byteorder), encoded, tokens, merges))
    return _MAGIC + hashlib.sha256(rest).digest() + rest


def _read(data: bytes, digest: str) -> tokenizers.Tokenizer:
    """Read a prepared form. Raises ValueError, or an error of `load`, if it is not that of the file with this
    digest."""
    rest = memoryview(data)[len(_MAGIC) + 32 :]
    if data[: len(_MAGIC)] != _MAGIC or hashlib.sha256(rest).digest() != data[len(_MAGIC) : len(_MAGIC) + 32]:
        raise ValueError("it is no prepared tokenizer, or a damaged one")
    end = 4 + int.from_bytes(rest[:4], sys.byteorder)
    header = untrusted_json.loads(bytes(rest[4:end]))
    content = rest[end:]
    if (header["source"], header["library"]) != (digest, tokenizers.__version__):
        raise ValueError("it is of another tokenizer.json, or of another version of the library")
    names = str(content[: header["bytes"]], "utf-8").split(header["separator"])
    numbers = bytes(content[header["bytes"] :])
    parts = map(names.__getitem__, memoryview(numbers).cast("I"))
    merges = list(zip(parts, parts, strict=True))
    tokenizer = tokenizers.Tokenizer.from_str(header["frame"])
    tokenizer.model = models.BPE(dict(zip(names, range(len(names)), strict=True)), merges, **header["options"])
    tokenizer.add_tokens([AddedToken(**token) for token in header["added"]])
    return tokenizer


def main(arguments: list[str] | None = None) -> int:
    import argparse  # imported here, since a worker's boot does not need it

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("source", type=Path, metavar="TOKENIZER_JSON_OR_GGUF")
    parser.add_argument("into", type=Path, metavar="INTO")
    options = parser.parse_args(arguments)
    os.nice(19)  # the lowest priority: nothing waits for it
    try:
        prepare(options.source, options.into)
    except (NotPreparedError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
