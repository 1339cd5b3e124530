"""Whether a chat template expects a message's content as one string or as a list of parts, read from its AST.

A template that iterates over content (`{% for part in message.content %}`) expects parts. The iteration may be
indirect: through `set`, a namespace, a filter, a conditional or a macro's parameter. So the names that may have content
as their value are collected first.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from jinja2 import nodes

ContentFormat = Literal["string", "openai"]

# Filters whose result is no longer a list of parts.
_TO_SCALAR = frozenset({"string", "trim", "join", "tojson", "replace", "upper", "lower", "length", "count", "escape"})
# Filters that iterate over parts themselves, without a loop in the template.
_WALKING = frozenset({"map", "selectattr", "rejectattr"})


def detect_content_format(template: nodes.Template) -> ContentFormat:
    """ "openai" if the template iterates over the content of a message, else "string"."""
    holders = _content_holders(template)
    walks = [loop.iter for loop in template.find_all(nodes.For)]
    walks += [step.node for step in template.find_all(nodes.Filter) if step.name in _WALKING and step.node is not None]
    return "openai" if any(_is_content(walked, holders) for walked in walks) else "string"


def _content_holders(template: nodes.Template) -> frozenset[str]:
    """The names, of variables ("x") and of namespace attributes ("ns.x"), that may hold a message's content."""
    bindings = list(_bindings(template))
    holders: frozenset[str] = frozenset()
    while True:
        found = frozenset(target for target, value in bindings if _is_content(value, holders))
        if found == holders:
            return holders
        holders = found


def _bindings(template: nodes.Template) -> Iterator[tuple[str, nodes.Node]]:
    """Every (name, expression) that the template assigns."""
    for assign in template.find_all(nodes.Assign):
        yield from _assigned(assign.target, assign.node)
    for block in template.find_all(nodes.With):
        for target, value in zip(block.targets, block.values, strict=False):
            yield from _assigned(target, value)
    macros = {macro.name: [parameter.name for parameter in macro.args] for macro in template.find_all(nodes.Macro)}
    for call in template.find_all(nodes.Call):
        if not isinstance(call.node, nodes.Name) or call.node.name not in macros:
            continue
        parameters = macros[call.node.name]
        yield from zip(parameters, call.args, strict=False)
        for keyword in call.kwargs:
            if keyword.key in parameters:
                yield keyword.key, keyword.value


def _assigned(target: nodes.Node, value: nodes.Node) -> Iterator[tuple[str, nodes.Node]]:
    if isinstance(target, nodes.Name):
        yield target.name, value
    elif isinstance(target, nodes.NSRef):
        yield f"{target.name}.{target.attr}", value
    elif isinstance(target, nodes.Tuple) and isinstance(value, nodes.Tuple):
        for one_target, one_value in zip(target.items, value.items, strict=False):
            yield from _assigned(one_target, one_value)


def _is_content(node: nodes.Node | None, holders: frozenset[str]) -> bool:
    """Whether an expression may be the content of a message, or a list of some of its parts."""
    match node:
        case nodes.Name(name=name):
            return name in holders
        case nodes.Getattr(attr="content") | nodes.Getitem(arg=nodes.Const(value="content")):
            return True
        case nodes.Getattr(node=nodes.Name(name=name), attr=attribute):
            return f"{name}.{attribute}" in holders
        case nodes.Getitem(node=inner, arg=nodes.Slice()):
            return _is_content(inner, holders)
        case nodes.Call(node=nodes.Getattr(attr="get"), args=[nodes.Const(value="content"), *_]):
            return True
        case nodes.Filter(node=inner, name=name):
            return name not in _TO_SCALAR and _is_content(inner, holders)
        case nodes.CondExpr(expr1=first, expr2=second):
            return _is_content(first, holders) or _is_content(second, holders)
        case nodes.And(left=left, right=right) | nodes.Or(left=left, right=right):
            return _is_content(left, holders) or _is_content(right, holders)
    return False
