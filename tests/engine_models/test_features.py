"""Whatever a decoder's configuration can say is computed by the operators, or refused by name."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch

from ember.boot import Timeline
from ember.engine.core.boot import open_model
from ember.engine.description import operator_sets
from ember.engine.description.config import (
    Activation,
    DecoderConfig,
    Disentangled,
    DistanceBias,
    ExpertsConfig,
    LatentConfig,
    Norm,
    QkNorm,
    Scores,
    TextConvolution,
    Wiring,
)
from ember.engine.description.families.registry import find_family
from ember.engine.description.features import DATA
from ember.engine.description.mixers import ConvConfig, DeltaConfig, SelectiveConfig, SelectiveNorm, SsdConfig, SsdNorm
from ember.engine.description.operator_choice import decide
from ember.engine.description.operator_sets import (
    LOOP,
    NATIVE,
    OPERATIONS,
    SETS,
    STATE_OPERATIONS,
    TORCH,
    TRITON,
    check_features,
)
from ember.engine.description.read_config import load_config
from ember.engine.description.rope_config import RopeConfig, RopeKind
from ember.engine.errors import ModelError
from ember.engine.loading.load import load_decoder
from ember.engine.models.decoder import WIRINGS
from ember.engine.operators.choose import choose
from ember.wire import Configure
from tests.engine_models.tiny import COVERING, VARIANTS, make_tiny, tiny_config
from tests.support.inline_engine import InlineEngine

DECLARED = LOOP.union(*(own for each in SETS for own in each.features.values()))
CHOICES: dict[str, tuple[str, ...]] = {
    "norm": get_args(Norm),
    "qk_norm": get_args(QkNorm),
    "wiring": get_args(Wiring),
    "activation": get_args(Activation),
    "rope.kind": get_args(RopeKind),
    "experts.scores": get_args(Scores),
    "ssd.norm": get_args(SsdNorm),
    "selective.norm": get_args(SelectiveNorm),
}
ROPE = RopeConfig(rotary_dim=16)
PARTS: dict[str, Any] = {
    "rope": ROPE,
    "local_rope": ROPE,
    "latent": LatentConfig(16, 16, 16, 16, 16),
    "experts": ExpertsConfig(4, "num_experts", 64, "moe_intermediate_size"),
    "delta": DeltaConfig(2, 4, 8, 8, 4),
    "conv": ConvConfig(3),
    "ssd": SsdConfig(4, 8, 2, 8, 4),
    "selective": SelectiveConfig(64, 8, 4, 4),
    "distance_bias": DistanceBias(32),
    "disentangled": Disentangled(16, 16, 64),
    "text_conv": TextConvolution(3, "gelu"),
}


def neutral() -> DecoderConfig:
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads", "head_dim")
    return DecoderConfig("Test", max_position_embeddings=64, names=None, **dict.fromkeys(sizes, 64))  # type: ignore[arg-type]


def other_values(name: str, kind: Any, default: Any) -> list[Any]:
    """Values of a field that are not its default, all of them where it is a choice."""
    if name in CHOICES:
        return [choice for choice in CHOICES[name] if choice != default]
    if name in PARTS:
        return [PARTS[name]]
    if isinstance(default, bool):
        return [not default]
    return ["other" if kind is str else 7]


def described(kind: type, prefix: str = "") -> list[tuple[str, Any]]:
    """Every field of a configuration that is no data, by its full name, with each of its values that is a feature."""
    hints = get_type_hints(kind)
    return [
        (prefix + field.name, value)
        for field in fields(kind)
        if prefix + field.name not in DATA
        for value in other_values(prefix + field.name, hints[field.name], field.default)
    ]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *described(DecoderConfig),
        *described(RopeConfig, "rope."),
        *described(ExpertsConfig, "experts."),
        *described(SsdConfig, "ssd."),
    ],
    ids=lambda value: str(value)[:30],
)
def test_every_field_is_data_or_a_feature_that_operators_compute(name: str, value: Any) -> None:
    part, _, own = name.rpartition(".")
    config = replace(neutral(), **({part: replace(PARTS[part], **{own: value})} if part else {name: value}))
    features = set(config.features()) - {part}
    assert len(features) == 1, "the field changes no feature: a set that does not know it would compute without it"
    assert features <= DECLARED, f"no operator set declares {features}: declare it where it is computed"
    check_features(config)


def test_what_is_listed_as_data_exists() -> None:
    known = {field.name for field in fields(DecoderConfig)}
    known |= {f"{name}.{field.name}" for name, part in PARTS.items() for field in fields(part)}
    assert known >= DATA
    assert neutral().features() == {}
    for field in fields(DecoderConfig):
        if field.name in DATA and field.default is not dataclasses.MISSING:
            value: Any = {"x": 1} if field.name == "quantization" else "x" if isinstance(field.default, str) else 5
            assert replace(neutral(), **{field.name: value}).features() == {}


def test_the_declarations_are_of_features_that_there_are() -> None:
    possible: set[str] = set()
    for name, value in described(DecoderConfig):
        possible |= replace(neutral(), **{name: value}).features().keys()
    for part, described_part in PARTS.items():
        for name, value in described(type(described_part), f"{part}."):
            own = {name.removeprefix(f"{part}."): value}
            possible |= replace(neutral(), **{part: replace(described_part, **own)}).features().keys()
    assert possible >= DECLARED
    assert tuple(TORCH.features) == OPERATIONS and WIRINGS.keys() == set(get_args(Wiring))
    for each in (TRITON, NATIVE):
        assert each.features.keys() <= TORCH.features.keys()
        assert {*each.needs, *each.needs.values()} <= each.features.keys()


@dataclass(frozen=True, slots=True)
class Stranger(DecoderConfig):
    """A configuration with fields that no operator set knows, as a new family might bring them."""

    soft_cap: float | None = None
    scores: str = "softmax"
    inverted: bool = True


UNKNOWN = [
    ({"soft_cap": 30.0}, "soft_cap=30.0"),
    ({"scores": "sigmoid"}, "scores=sigmoid"),
    ({"inverted": False}, "inverted=False"),
]


def stranger(config: DecoderConfig, **changes: Any) -> Stranger:
    return Stranger(**{field.name: getattr(config, field.name) for field in fields(DecoderConfig)}, **changes)


@pytest.mark.parametrize(("changes", "named"), UNKNOWN)
def test_a_feature_that_nobody_declares_is_refused_by_every_path(
    changes: dict[str, Any], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = make_tiny("llama", tmp_path, num_hidden_layers=1)
    config = load_config(directory)
    model = load_decoder(directory, config, dtype=torch.float32, device=torch.device("cpu")).decoder
    with pytest.raises(ModelError, match=f"no operators compute {named}: LlamaForCausalLM cannot be served"):
        check_features(stranger(config, **changes))
    for device in ("cpu", "cuda"):
        for dtype in (torch.float32, torch.bfloat16):
            with pytest.raises(ModelError, match=named):
                choose(stranger(config, **changes), model.parts, dtype, torch.device(device))
    family = find_family("LlamaForCausalLM")
    odd = family._replace(read=lambda given: stranger(family.read(given), **changes))
    monkeypatch.setattr("ember.engine.description.read_config.find_family", lambda architecture: odd)
    configure = Configure(model=str(directory), device="cpu")
    with pytest.raises(ModelError, match=f"no operators compute {named}"):  # before the weights are touched
        open_model(configure, Timeline("test"), lambda message: None)


@pytest.mark.parametrize("each", [TRITON, NATIVE], ids=["triton", "native"])
def test_a_set_leaves_what_it_does_not_declare_to_torch(each: operator_sets.OperatorSet) -> None:
    """Taken away one at a time: the operation falls back, alone or with what it only works with, and says why."""
    config = replace(
        neutral(),
        qk_norm="head",
        rope=replace(ROPE, kind="yarn"),
        sliding_window=9,
        qkv_bias=True,
        embed_dim=64,
    )
    assert each.lacking(config) == {}
    needed_ones = {name: own for name, own in each.features.items() if operator_sets.is_needed(config, name)}
    for operation, own in needed_ones.items():
        for feature in own & config.features().keys():
            poorer = replace(each, features={**each.features, operation: own - {feature}})
            found = poorer.lacking(config)
            expected = {operation} | {other for other, needed in each.needs.items() if needed == operation}
            assert found.keys() == expected
            assert all(feature in fault for fault in found.values())


def test_sizes_that_do_not_fit_leave_their_operations_to_torch() -> None:
    odd_heads = replace(neutral(), head_dim=24)
    assert TRITON.lacking(odd_heads).keys() == {"place_heads", "attend"}
    assert "head_dim=24 is no multiple of 16" in TRITON.lacking(odd_heads)["attend"]
    assert NATIVE.lacking(odd_heads).keys() == {"place_heads", "attend"}
    assert TRITON.lacking(replace(neutral(), hidden_size=32768)).keys() == {"add_norm"}
    assert NATIVE.lacking(replace(neutral(), intermediate_size=100)).keys() == {"linear", "logits", "add_norm"}
    assert NATIVE.lacking(replace(neutral(), embed_dim=48)).keys() == {"linear", "logits", "add_norm"}


def test_every_family_is_computed() -> None:
    """Every feature is declared by an operator set, and is one of a variant in COVERING too."""
    features = {}
    for variant in VARIANTS:
        config = tiny_config(variant)
        check_features(config)
        features[variant] = {*config.features(), config.wiring}
    everything = set().union(*features.values())
    assert set().union(*(features[variant] for variant in COVERING)) == everything


def test_states_are_computed_in_kernels_and_what_is_not_is_named() -> None:
    for variant in ("mamba2", "qwen3_5", "lfm2", "jamba"):
        decision = decide(tiny_config(variant), "bfloat16", "cuda")
        assert decision.name == "triton" and not decision.lacking.keys() & set(STATE_OPERATIONS)
    wide = tiny_config("mamba2")
    assert wide.ssd is not None
    wide = replace(wide, ssd=replace(wide.ssd, state_dim=257))
    assert decide(wide, "bfloat16", "cuda").lacking.keys() == {"scan"}
    wide = tiny_config("jamba")
    assert wide.selective is not None
    wide = replace(wide, selective=replace(wide.selective, state_dim=257))
    assert decide(wide, "bfloat16", "cuda").lacking.keys() >= {"selective_scan"}


def test_the_declarations_are_read_without_torch() -> None:
    code = (
        "import sys, json\n"
        "from ember.engine.description import native_forms, operator_sets, read_config\n"
        "print(json.dumps(sorted(name for name in sys.modules if name.partition('.')[0] in ('torch', 'numpy'))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_the_choice_and_its_reason_are_told(tmp_path: Path) -> None:
    ready = InlineEngine(make_tiny("llama", tmp_path, num_hidden_layers=1)).info
    assert ready.operators == "torch (float32 on a CPU, where the C library computes in bfloat16)"
    (phase,) = (phase for phase in ready.boot_phases if phase["name"] == "operators")
    assert phase["detail"] == {"chosen": ready.operators}
