"""The tokenizer's files beside tokenizer.json: named tokens, added tokens, chat templates.

The rules are those of transformers 5 for a fast tokenizer, so that ids and templates are equal. added_tokens_decoder in
tokenizer_config.json has precedence; special_tokens_map.json and added_tokens.json (older repositories) are read only
if it is absent. `add_bos_token` is not read, since the post-processor in tokenizer.json decides whether a sequence
begins with BOS.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from ember import untrusted_json
from ember.front.text.template_file import MAX_TEMPLATE_BYTES, TemplateFileError, read_template
from ember.regular_file import MAX_JSON_BYTES
from ember.untrusted_json import UntrustedJsonError

# Names of tokens that every tokenizer may have. Any other "<name>_token" entry is specific to a model (image_token).
STANDARD_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_ADDED_TOKEN_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
MAX_TEMPLATES = 100  # in additional_chat_templates


class TokenizerError(Exception):
    """The model directory has no usable tokenizer. The message is one line that says what to do."""


@dataclass(frozen=True)
class TokenizerFiles:
    """The parts of a tokenizer that are not in tokenizer.json."""

    special_tokens: dict[str, str]  # "bos_token" -> "<s>", in the order of the template's variables
    eos_token: str | None  # the token that ends an answer
    added_tokens: list[AddedToken]  # to be added to the tokenizer, in this order
    chat_template: str | dict[str, str] | None
    split_special_tokens: bool  # whether the text of a special token is encoded as ordinary text
    truncation_side: str = "right"  # where a text that is too long is cut, if the request does not say


def read_tokenizer_files(
    directory: Path,
    known: Mapping[int, AddedToken],
    padding: Mapping[str, Any] | None,
    defaults: Mapping[str, str] | None = None,
) -> TokenizerFiles:
    """Read the files of `directory` beside tokenizer.json.

    `known` and `padding` are the added tokens and the padding of tokenizer.json. `defaults` are named tokens that are
    used if the files have none. Raises TokenizerError for a malformed file.
    """
    try:
        return _read_files(directory, known, padding, defaults or {})
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise _malformed(directory, error) from None


def _read_files(
    directory: Path, known: Mapping[int, AddedToken], padding: Mapping[str, Any] | None, defaults: Mapping[str, str]
) -> TokenizerFiles:
    config = {**defaults, **_read_json(directory / "tokenizer_config.json")}
    listed: dict[int, AddedToken]
    if "added_tokens_decoder" in config:
        listed = {int(index): _added_token(entry) for index, entry in config["added_tokens_decoder"].items()}
    else:
        named_there = _read_json(directory / "special_tokens_map.json")
        config |= {name: token for name, token in named_there.items() if token is not None}
        listed = {**_legacy_added_tokens(directory, config), **known}
    named = _named_tokens(config)
    if padding is not None and "pad_token" not in config:
        named["pad_token"] = _added_token(str(padding["pad_token"]), special=True)

    special_names = {token.content for token in named.values()}
    tokens: dict[str, AddedToken] = {}
    for _, token in sorted(listed.items()):
        tokens[token.content] = _as_special(token) if token.content in special_names else token
    present = {token.content for token in known.values()} | tokens.keys()
    for token in [*named.values(), *_extra_tokens(config)]:
        if token.content not in present:
            present.add(token.content)
            tokens[token.content] = token
    return TokenizerFiles(
        special_tokens={name: token.content for name, token in named.items()},
        eos_token=_eos_token(directory, named),
        added_tokens=list(tokens.values()),
        chat_template=_chat_template(directory, config),
        split_special_tokens=bool(config.get("split_special_tokens", False)),
        truncation_side="left" if config.get("truncation_side") == "left" else "right",
    )


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if the file does not exist."""
    try:
        return untrusted_json.read_object(path, MAX_JSON_BYTES) or {}
    except UntrustedJsonError as error:
        raise TokenizerError(f"{path} cannot be read ({error}): download the model's tokenizer files again") from None


def _added_token(entry: object, *, special: bool = False) -> AddedToken:
    """Read an added token: its text, or an object with "content" and flags."""
    if isinstance(entry, dict) and isinstance(entry.get("content"), str):
        flags = {flag: bool(entry[flag]) for flag in _ADDED_TOKEN_FLAGS if flag in entry}
        return AddedToken(entry["content"], **({"special": True} if special else {}) | flags)
    if isinstance(entry, str):
        return AddedToken(entry, special=True) if special else AddedToken(entry)
    raise TokenizerError(
        f"tokenizer_config.json: an added token must be text or have 'content', not {ascii(entry)[:100]}"
    )


def _as_special(token: AddedToken) -> AddedToken:
    """The same token, marked as special: a token with a role (EOS, ...) is special whatever its flags are."""
    flags = {flag: getattr(token, flag) for flag in _ADDED_TOKEN_FLAGS}
    return AddedToken(token.content, **flags | {"special": True})


def _named_tokens(config: Mapping[str, Any]) -> dict[str, AddedToken]:
    """Every "<name>_token" entry that names a token: the standard names first, then the model's own."""
    own = [key for key in config if key.endswith("_token") and key not in STANDARD_NAMES]
    named = {}
    for key in (*STANDARD_NAMES, *own):
        value = config.get(key)
        if isinstance(value, str) or (isinstance(value, dict) and "content" in value):
            named[key] = _added_token(value, special=True)
    extra = config.get("extra_special_tokens")
    if isinstance(extra, dict):
        named.update({key: _added_token(value, special=True) for key, value in extra.items()})
    return named


def _eos_token(directory: Path, named: Mapping[str, AddedToken]) -> str | None:
    """The text of the end token, from tokenizer_config.json or else special_tokens_map.json. transformers does not read
    the latter beside an added_tokens_decoder, but without an end token no answer would end."""
    if "eos_token" not in named:
        named = _named_tokens(_read_json(directory / "special_tokens_map.json"))
    return named["eos_token"].content if "eos_token" in named else None


def _extra_tokens(config: Mapping[str, Any]) -> list[AddedToken]:
    """Special tokens without a name of their own."""
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    return [_added_token(entry, special=True) for entry in extra] if isinstance(extra, list) else []


def _legacy_added_tokens(directory: Path, config: Mapping[str, Any]) -> dict[int, AddedToken]:
    """The tokens of added_tokens.json (text -> id, without flags). A token with a role in the configuration is
    special."""
    special = {token.content for token in [*_named_tokens(config).values(), *_extra_tokens(config)]}
    tokens = {}
    for content, index in _read_json(directory / "added_tokens.json").items():
        is_special = content in special
        tokens[int(index)] = AddedToken(content, normalized=not is_special, special=is_special)
    return tokens


def read_chat_template(directory: Path) -> str | dict[str, str] | None:
    """The chat template of a directory or a GGUF file, without reading its tokenizer. Raises TokenizerError."""
    if directory.is_file():
        return _template_of_gguf(directory)
    try:
        return _chat_template(directory, _read_json(directory / "tokenizer_config.json"))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _malformed(directory, error) from None


def _template_of_gguf(file: Path) -> str | dict[str, str] | None:
    from ember.gguf.header import GgufError
    from ember.gguf.tokenizer import load_templates

    try:
        templates = load_templates(file)
    except GgufError as error:
        raise TokenizerError(str(error)) from None
    refuse_long(templates, file)
    return one_or_named(templates)


def refuse_long(templates: Mapping[str, str], place: Path) -> None:
    """Raise TokenizerError if one of the chat templates of a directory or file is too long."""
    for name, text in templates.items():
        if len(text) > MAX_TEMPLATE_BYTES:
            raise TokenizerError(
                f"the chat template {ascii(name)[:100]} in {place} has {len(text):,} characters; "
                f"{MAX_TEMPLATE_BYTES:,} are allowed"
            )


def one_or_named(templates: dict[str, str]) -> str | dict[str, str] | None:
    """The only chat template, or the named ones; None if there are none."""
    return templates["default"] if templates.keys() == {"default"} else templates or None


def _malformed(directory: Path, error: Exception) -> TokenizerError:
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return TokenizerError(
        f"the tokenizer's files in {directory} hold something else than they should ({reason}): download the "
        "model's tokenizer files again"
    )


def _no_template(file: Path, given: object) -> TokenizerError:
    value = reprlib.repr(given)
    return TokenizerError(f"chat_template in {file} must be Jinja text, or named templates, not {ascii(value)[1:-1]}")


def _chat_template(directory: Path, config: Mapping[str, Any]) -> str | dict[str, str] | None:
    """The chat template, or the named ones if there are several.

    chat_template.jinja has precedence over tokenizer_config.json, and that over chat_template.json (of older multimodal
    processors). additional_chat_templates/<name>.jinja add named templates.
    """
    template = config.get("chat_template")
    named: dict[str, str] = {}
    if isinstance(template, str):
        named |= {"default": template} if template else {}
    elif isinstance(template, dict):
        named.update(template)
    elif isinstance(template, list):
        try:
            named.update({entry["name"]: entry["template"] for entry in template})
        except (KeyError, TypeError):
            raise _no_template(directory / "tokenizer_config.json", template) from None
    elif template is not None:
        raise _no_template(directory / "tokenizer_config.json", template)
    for text in named.values():
        if not isinstance(text, str):
            raise _no_template(directory / "tokenizer_config.json", text)
    try:
        if (path := directory / "chat_template.jinja").exists():
            named = {"default": read_template(path)}
        for path in sorted((directory / "additional_chat_templates").glob("*.jinja"))[:MAX_TEMPLATES]:
            named[path.stem] = read_template(path)
    except TemplateFileError as error:
        raise TokenizerError(f"the chat template {error}") from None
    path = directory / "chat_template.json"
    if not named and (processor := _read_json(path).get("chat_template")) is not None:
        if not isinstance(processor, str):
            raise _no_template(path, processor)
        named["default"] = processor
    if not named:
        return None
    refuse_long(named, directory)
    return one_or_named(named)
