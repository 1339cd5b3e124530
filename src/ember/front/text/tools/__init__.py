"""Tool calls: how a model's calls are told from its text, and how it is held to their form."""

from ember.front.text.tools.format import ToolFormat, ToolParser, choose_tool_format

__all__ = ["ToolFormat", "ToolParser", "choose_tool_format"]
