"""The formats of the model's tool calls and reasoning, chosen once at start-up."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ember import untrusted_json
from ember.config_overrides import overridden
from ember.front.text.reasoning import ReasoningFormat, choose_reasoning_format
from ember.front.text.template import ChatTemplate
from ember.front.text.tokenizer import Tokenizer
from ember.front.text.tools import ToolFormat, choose_tool_format
from ember.regular_file import MAX_JSON_BYTES
from ember.settings import Settings

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Formats:
    """The model's formats, each with the reason for it. None: the model has no known one."""

    reasoning: ReasoningFormat | None
    reasoning_reason: str
    tools: ToolFormat | None
    tools_reason: str

    @property
    def reasoning_name(self) -> str:
        return "none" if self.reasoning is None else self.reasoning.name

    @property
    def tools_name(self) -> str:
        return "none" if self.tools is None else self.tools.name


def choose_formats(settings: Settings, tokenizer: Tokenizer, template: ChatTemplate | None, model_dir: Path) -> Formats:
    """Choose the formats by the settings, else by the chat templates, the model's type, or its name. The log has the
    result and the reason.

    Raises ValueError, with one line, for an unknown name in the settings.
    """
    formats = formats_of(settings, tokenizer.chat_template, template, model_dir)
    log.info("reasoning format: %s (%s)", formats.reasoning_name, formats.reasoning_reason)
    log.info("tool call format: %s (%s)", formats.tools_name, formats.tools_reason)
    return formats


def formats_of(
    settings: Settings, own: str | Mapping[str, str] | None, template: ChatTemplate | None, model_dir: Path
) -> Formats:
    """The formats, without a line in the log. `own`: the model's chat template, or its named ones. Raises
    ValueError."""
    texts = [template.source] if template is not None else []
    if isinstance(own, Mapping) and settings.custom_chat_template is None:
        texts += own.values()
    text = "\n".join(texts)
    kind = _model_type(model_dir, settings.hf_overrides)
    name = settings.model_name or "demo"
    reasoning = choose_reasoning_format(text, kind, name, settings.reasoning_parser)
    tools = choose_tool_format(text, kind, name, settings.tool_call_parser)
    return Formats(*reasoning, *tools)


def _model_type(model_dir: Path, overrides: Mapping[str, Any]) -> str | None:
    """`model_type` of config.json, or a GGUF file's architecture, which is spelled much like it."""
    if model_dir.is_file():
        return _architecture(model_dir)
    try:
        fields = untrusted_json.read_file(model_dir / "config.json", MAX_JSON_BYTES)
        kind = overridden(fields, overrides).get("model_type")
    except (OSError, ValueError, AttributeError, TypeError):
        return None  # the engine reports the error
    return kind if isinstance(kind, str) else None


def _architecture(file: Path) -> str | None:
    from ember.gguf.header import GgufError, read_header

    try:
        return read_header(file).metadata.text("general.architecture")
    except GgufError:
        return None
