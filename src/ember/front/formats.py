"""The formats of the model's tool calls and reasoning, chosen once at start-up."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from ember import untrusted_json
from ember.front.text.reasoning import ReasoningFormat, choose_reasoning_format
from ember.front.text.template import ChatTemplate
from ember.front.text.tokenizer import Tokenizer
from ember.front.text.tools import ToolFormat, choose_tool_format
from ember.regular_file import MAX_JSON_BYTES
from ember.settings import Settings

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Formats:
    """The model's formats. None: the model has no known one."""

    reasoning: ReasoningFormat | None
    tools: ToolFormat | None


def choose_formats(settings: Settings, tokenizer: Tokenizer, template: ChatTemplate | None, model_dir: Path) -> Formats:
    """Choose the formats by the settings, else by the chat templates, the model's type, or its name. The log has the
    result and the reason.

    Raises ValueError, with one line, for an unknown name in the settings.
    """
    own = tokenizer.chat_template
    texts = [template.source] if template is not None else []
    if isinstance(own, dict) and settings.custom_chat_template is None:
        texts += own.values()
    text = "\n".join(texts)
    kind = _model_type(model_dir)
    name = settings.model_name or "demo"
    reasoning, why = choose_reasoning_format(text, kind, name, settings.reasoning_parser)
    log.info("reasoning format: %s (%s)", "none" if reasoning is None else reasoning.name, why)
    tools, why = choose_tool_format(text, kind, name, settings.tool_call_parser)
    log.info("tool call format: %s (%s)", "none" if tools is None else tools.name, why)
    return Formats(reasoning, tools)


def _model_type(model_dir: Path) -> str | None:
    try:
        kind = untrusted_json.read_file(model_dir / "config.json", MAX_JSON_BYTES).get("model_type")
    except (OSError, ValueError, AttributeError):
        return None  # the engine reports the error
    return kind if isinstance(kind, str) else None
