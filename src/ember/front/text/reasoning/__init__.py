"""Reasoning formats: how a model's reasoning is told from its answer."""

from ember.front.text.reasoning.format import (
    SWITCHES,
    ReasoningFormat,
    ReasoningParser,
    choose_reasoning_format,
)

__all__ = ["SWITCHES", "ReasoningFormat", "ReasoningParser", "choose_reasoning_format"]
