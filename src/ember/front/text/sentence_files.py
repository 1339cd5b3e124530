"""What the files of sentence-transformers say about texts: named prompts, lower case, and how pairs become prompts.

Prompts are texts such as "query: " that a model wants before its input. They are in config_sentence_transformers.json.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ember import untrusted_json
from ember.regular_file import MAX_JSON_BYTES
from ember.sentence_layout import module_root
from ember.untrusted_json import UntrustedJsonError

log = logging.getLogger(__name__)

PROMPTS_FILE = "config_sentence_transformers.json"
TEXT_FILE = "sentence_bert_config.json"


@dataclass(frozen=True, slots=True)
class PairForm:
    """How a reranker's files want a query and a document as the messages of its chat template."""

    is_structured: bool = False  # whether a content is a list of parts
    variables: Mapping[str, Any] = field(default_factory=dict)  # of the template


@dataclass(frozen=True, slots=True)
class SentenceFiles:
    """The part of the files that concerns the text of a request."""

    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None  # of a request that names none
    lower_case: bool = False  # whether texts are lower-cased before they are tokenised
    pairs: PairForm | None = None  # None: the files do not say that pairs are messages

    def prompt(self, name: str | None) -> str:
        """The text of a named prompt, which must exist, or of the default one."""
        name = self.default_prompt_name if name is None else name
        return "" if name is None else self.prompts[name]


def read_sentence_files(directory: Path) -> SentenceFiles:
    """Read the files of a model. One that is missing or broken says nothing; a broken one is logged."""
    config = _read(module_root(directory) / PROMPTS_FILE)
    given = config.get("prompts")
    prompts = given if isinstance(given, dict) else {}
    prompts = {name: text for name, text in prompts.items() if isinstance(text, str)}
    default = config.get("default_prompt_name")
    if not isinstance(default, str) or default not in prompts:
        if default is not None:
            log.warning("default_prompt_name of %s names none of its prompts and is ignored", PROMPTS_FILE)
        default = None
    text = _read(directory / TEXT_FILE)
    return SentenceFiles(prompts, default, text.get("do_lower_case") is True, _pair_form(text))


def _pair_form(text: Mapping[str, Any]) -> PairForm | None:
    """The form of pairs that the file of the module Transformer describes, in the newer releases."""
    modes = text.get("modality_config")
    message = modes.get("message") if isinstance(modes, dict) else None
    if not isinstance(message, dict):
        return None
    given = text.get("processing_kwargs")
    variables = given.get("chat_template") if isinstance(given, dict) else None
    return PairForm(message.get("format") == "structured", variables if isinstance(variables, dict) else {})


def _read(path: Path) -> dict[str, Any]:
    if not path.parent.is_dir():  # a GGUF file
        return {}
    try:
        return untrusted_json.read_object(path, MAX_JSON_BYTES) or {}
    except UntrustedJsonError as error:
        log.warning("%s cannot be read and is ignored (%s): download the file again", path, error)
        return {}
