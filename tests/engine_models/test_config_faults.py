"""A fault in a config.json is one line that names the field: every field of every family, with values of every kind."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest

from ember.engine.description.cache_groups import cache_groups
from ember.engine.description.families.registry import find_family
from ember.engine.description.operator_sets import NATIVE, TRITON, check_features
from ember.engine.description.read_config import read_config
from ember.engine.errors import ModelError
from tests.engine_models.test_shells import TINY, shell_config
from tests.engine_models.tiny import VARIANTS, config_class, model_class, tiny_fields

Path = tuple[str | int, ...]
ABSENT = object()
VALUES: tuple[Any, ...] = (
    *(ABSENT, None, [], [1], ["x"], [{}], {"a": 1}, {"type": {}}, "x", True),
    *(-1, 0, 1, 3, 0.5, math.nan, 10**30, 2**31 - 1),
)
SCALED: dict[str, dict[str, Any]] = {  # fields of `rope_scaling`, in older files, by the kind
    "linear": {},
    "dynamic": {},
    "llama3": {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32},
    "yarn": {
        "original_max_position_embeddings": 32,
        "beta_fast": 32,
        "beta_slow": 1,
        "attention_factor": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "truncate": True,
    },
    "longrope": {"short_factor": [1.0] * 7, "long_factor": [1.0] * 7, "original_max_position_embeddings": 32},
}


@cache
def written(name: str) -> str:
    """A valid config.json: of a family (or a variant), of a multimodal model, or with one kind of `rope_scaling`."""
    if name in SCALED:
        fields = json.loads(written("llama"))
        del fields["rope_parameters"]
        scaling = {"type": name, "factor": 2.0, **SCALED[name]}
        return json.dumps({**fields, "head_dim": 14, "rope_theta": 1e4, "rope_scaling": scaling})
    if name in TINY:
        return json.dumps(shell_config(name).to_dict())
    family, fields = tiny_fields(name)
    return json.dumps({**config_class(family)(**fields).to_dict(), "architectures": [model_class(family)]})


def places(value: Any, path: Path = ()) -> Iterator[Path]:
    """The path of each field, of those in it, and of the first entries of lists."""
    for key, inner in value.items() if isinstance(value, dict) else list(enumerate(value))[:1]:
        yield (*path, key)
        if isinstance(inner, dict | list):
            yield from places(inner, (*path, key))


def changed(value: Any, path: Path, new: Any) -> Any:
    """A copy in which the field at `path` is `new`."""
    made, key = dict(enumerate(value)) if isinstance(value, list) else dict(value), path[0]
    if len(path) > 1:
        made[key] = changed(value[key], path[1:], new)
    elif new is ABSENT:
        del made[key]
    else:
        made[key] = new
    return list(made.values()) if isinstance(value, list) else made


def fault(fields: dict[str, Any]) -> str | None:
    """The error for a config.json; None if it is read. Any other exception than ModelError is a bug."""
    try:
        config = read_config(fields)
        check_features(config)
        config.served_up_to(100).windows()
        cache_groups(config, 2)
        NATIVE.lacking(config), TRITON.lacking(config)
    except ModelError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", [*VARIANTS, *TINY, *SCALED])
def test_every_faulty_field_is_named(name: str) -> None:
    fields = json.loads(written(name))
    known = find_family(read_config(fields).text_architecture).fields
    text: Path = ("text_config",) if "text_config" in fields else ()
    of_text = fields["text_config"] if text else fields
    others = {"architectures", "text_config", "vision_config"}
    paths = [path for path in places(fields) if path[0] in known | others]
    paths = [path for path in paths if path[0] != "vision_config" or len(path) == 1]
    paths += [(*text, field) for field in sorted(known - of_text.keys())]
    wrong = []
    for path in paths:
        is_new = len(path) == len(text) + 1 and path[-1] not in of_text
        field = next(part for part in reversed(path) if isinstance(part, str) and not part.isdecimal())
        for value in VALUES[1 if is_new else 0 :]:
            said = fault(changed(fields, path, value))
            if said is not None and (field not in said or "\n" in said):
                wrong.append((path, value, said))
    assert not wrong


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "qwen3_moe", "bloom"])
def test_counts_that_are_too_large_to_list_are_refused(name: str) -> None:
    fields = json.loads(written(name))
    layers = next(field for field in ("num_hidden_layers", "n_layer") if field in fields)
    said = fault({**fields, layers: 100_000})
    assert said == f"{layers} must be an integer from 1 to 10000, not 100000"


@pytest.mark.parametrize(("field", "value"), [("moe_layers", [1, 3]), ("attn_temperature_tuning", "false")])
def test_values_of_llama4_that_would_pass_for_others(field: str, value: Any) -> None:
    said = fault(changed(json.loads(written("llama4")), ("text_config", field), value))
    assert said is not None and said.startswith(f"text_config.{field} must be ")
