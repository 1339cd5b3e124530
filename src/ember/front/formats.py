"""Which form the model's tool calls and its reasoning have, found out once at start-up."""

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
    """None: the model has none that is known."""

    reasoning: ReasoningFormat | None
    tools: ToolFormat | None


def choose_formats(settings: Settings, tokenizer: Tokenizer, template: ChatTemplate | None, model_dir: Path) -> Formats:
    """By the settings, else by the chat templates' text, the model's type, its name; the log says which and why.

    Raises ValueError, one line, for a name in the settings that there is no format of.
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
        return None  # the engine says what is wrong with it
    return kind if isinstance(kind, str) else None
