"""Formats of reasoning, and the parsers that split a model's reasoning from its answer."""

from ember.front.text.reasoning.format import (
    SWITCHES,
    ReasoningFormat,
    ReasoningParser,
    choose_reasoning_format,
)

__all__ = ["SWITCHES", "ReasoningFormat", "ReasoningParser", "choose_reasoning_format"]
