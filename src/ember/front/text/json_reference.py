"""References within one JSON document: what `#/$defs/x` names, and where a row of them leads."""

from __future__ import annotations

import re
from typing import Any

MAX_REFERENCES = 16  # followed from one to the next
_INDEX = re.compile("0|[1-9][0-9]{0,8}")  # RFC 6901, and no longer than a list can be


def lookup(root: Any, reference: str) -> Any:
    """What a `#/...` reference names; None where there is nothing, or where it leads out of the document."""
    if reference == "#":
        return root
    if not reference.startswith("#/"):
        return None
    here = root
    for part in reference[2:].split("/"):
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(here, dict):
            here = here.get(key)
        elif isinstance(here, list) and _INDEX.fullmatch(key) and int(key) < len(here):
            here = here[int(key)]
        else:
            return None
    return here


def resolve(root: Any, schema: Any) -> Any:
    """The schema that `$ref`s of this document lead to; itself where there is none, or where it cannot be told."""
    for _ in range(MAX_REFERENCES):
        reference = schema.get("$ref") if isinstance(schema, dict) else None
        if not isinstance(reference, str):
            return schema
        target = lookup(root, reference)
        if target is None:
            return schema
        schema = target
    return schema
