"""Formats of tool calls: parsers that find a model's calls in its output, and grammars that enforce the format."""

from ember.front.text.tools.format import ToolFormat, ToolParser, choose_tool_format

__all__ = ["ToolFormat", "ToolParser", "choose_tool_format"]
