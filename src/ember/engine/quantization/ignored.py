"""Modules that a checkpoint leaves unquantised, by the lists in its quantization_config. No torch is imported."""

from __future__ import annotations

from fnmatch import fnmatchcase

from ember.engine.description.fields import shown
from ember.engine.errors import ModelError
from ember.engine.quantization.expressions import Expression, Expressions

# Parts of a module that other programs fuse, so that lists may name the whole.
_FUSED = {
    "q_proj": "qkv_proj",
    "k_proj": "qkv_proj",
    "v_proj": "qkv_proj",
    "gate_proj": "gate_up_proj",
    "up_proj": "gate_up_proj",
}


class Ignored:
    """A list of modules, as `modules_to_not_convert`, `ignore`, `exclude_modules` and `llm_int8_skip_modules` have it.

    An entry is one of these:
      - a name, or consecutive parts of one: it covers that module and those in it (`lm_head`, `mlp.gate`,
        `model.layers.0`)
      - a name with `*` or `?`
      - `re:` and a regular expression, which matches from the name's beginning on
    """

    def __init__(self, entries: object, field: str) -> None:
        """`entries`: the list, or None. `field`: its name, for errors. Raises ModelError if it is no list, or for an
        entry that cannot be read."""
        if entries is not None and not isinstance(entries, list | tuple):
            raise ModelError(f"{field} is {shown(entries)}: it must be a list of names of modules")
        self._names: list[str] = []
        self._patterns: list[str] = []
        self._expressions: list[Expression] = []
        expressions = Expressions(field)
        for entry in entries or ():
            if not isinstance(entry, str):
                raise ModelError(f"{field} has {shown(entry)}: its entries must be names of modules")
            if entry.startswith("re:"):
                self._expressions.append(expressions.compile(entry[3:], entry))
            elif "*" in entry or "?" in entry:
                self._patterns.append(entry)
            elif entry:
                self._names.append(f".{entry}.")

    def __contains__(self, module: object) -> bool:
        """Whether a module, by its whole name without `.weight`, is left unquantised."""
        if not isinstance(module, str):
            return False
        before, dot, last = module.rpartition(".")
        return self._covers(module) or (last in _FUSED and self._covers(f"{before}{dot}{_FUSED[last]}"))

    def _covers(self, module: str) -> bool:
        dotted = f".{module}."
        return (
            any(name in dotted for name in self._names)
            or any(fnmatchcase(module, pattern) for pattern in self._patterns)
            or any(expression.match(module) for expression in self._expressions)
        )
