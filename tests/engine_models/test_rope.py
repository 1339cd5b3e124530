"""Cosines and sines of every kind of rotary positions against transformers' own functions, at many positions."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from ember.engine.description.config import DecoderConfig
from ember.engine.description.fields import Fields
from ember.engine.description.read_rope import RopeForm
from ember.engine.description.rotary_decoder import read_rotary_decoder
from ember.engine.errors import ModelError
from ember.engine.layers.rotary import Rotary

HEAD_DIM, LONGEST = 24, 4096
SIZES: dict[str, Any] = {
    "vocab_size": 99,
    "hidden_size": 4 * HEAD_DIM,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "max_position_embeddings": LONGEST,
}
POSITIONS = torch.tensor([0, 1, 2, 63, 64, 1000, 4095, 4096, 5000, 16383, 100_000])
SHORT, LONG = [1.0 + pair / 10 for pair in range(12)], [3.0 + pair for pair in range(12)]
KINDS: list[dict[str, Any]] = [
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 4.0},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 512,
    },
    {  # Llama 4 Scout's limits
        "rope_type": "llama3",
        "factor": 16.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 1.0,
        "original_max_position_embeddings": 512,
    },
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024},
    {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 1024,
        "truncate": False,
        "mscale": 0.7,
        "mscale_all_dim": 1.1,
        "beta_fast": 20.0,
        "beta_slow": 2.0,
    },
]
DYNAMIC: dict[str, Any] = {"rope_type": "dynamic", "factor": 3.0}
LONGROPE: dict[str, Any] = {
    "rope_type": "longrope",
    "short_factor": SHORT,
    "long_factor": LONG,
    "original_max_position_embeddings": 512,
}


def read(rope: dict[str, Any], older: bool = False, form: RopeForm | None = None, **fields: Any) -> DecoderConfig:
    rope = {"rope_theta": 5000.0, **rope}
    given = SIZES | fields | ({"rope_scaling": rope} if older else {"rope_parameters": rope})
    if older:
        rope["type"] = rope.pop("rope_type")
        given["rope_theta"] = rope.pop("rope_theta")
    return read_rotary_decoder(Fields(given), max_position_embeddings=1, rope=form)


def check(config: DecoderConfig, rope: dict[str, Any], length: int | None = None) -> None:
    """Compare with transformers' angles of a sequence of that length."""
    theirs = LlamaConfig(**SIZES, rope_parameters={"rope_theta": 5000.0, **copy.deepcopy(rope)})
    if rope["rope_type"] == "default":
        steps = torch.arange(0, HEAD_DIM, 2).float() / HEAD_DIM
        frequencies, factor = 1 / 5000.0**steps, 1.0
    else:
        frequencies, factor = ROPE_INIT_FUNCTIONS[rope["rope_type"]](theirs, None, seq_len=length)
    assert config.rope is not None
    cosines, sines = Rotary.build(config.rope, torch.device("cpu")).angles(POSITIONS, torch.float32)
    angles = torch.outer(POSITIONS.float(), frequencies)
    half = frequencies.shape[0]
    torch.testing.assert_close(cosines[:, 0, :half], angles.cos() * factor, rtol=0, atol=2e-2)
    torch.testing.assert_close(cosines[:7, 0, :half], angles[:7].cos() * factor, rtol=0, atol=1e-3)
    torch.testing.assert_close(sines[:7, 0, half:], angles[:7].sin() * factor, rtol=0, atol=1e-3)


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("rope", KINDS, ids=lambda rope: rope["rope_type"])
def test_kinds_that_do_not_depend_on_the_length(rope: dict[str, Any], older: bool) -> None:
    check(read(rope, older), rope)


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("served", [100, LONGEST, LONGEST + 1, 9000, 3 * LONGEST])
def test_dynamic_is_that_of_the_longest_context_served(served: int, older: bool) -> None:
    check(read(DYNAMIC, older).served_up_to(served), DYNAMIC, served)


def test_dynamic_allows_longer_contexts_where_they_are_asked_for() -> None:
    config = read(DYNAMIC)
    assert config.max_position_embeddings == LONGEST == config.served_up_to(None).max_position_embeddings
    assert config.served_up_to(LONGEST).max_position_embeddings == LONGEST
    assert config.served_up_to(LONGEST + 1).max_position_embeddings == 3 * LONGEST
    check(config, DYNAMIC, LONGEST)
    check(config.served_up_to(10**9), DYNAMIC, 3 * LONGEST)


@pytest.mark.parametrize("more", [{}, {"factor": 16.0}, {"attention_factor": 1.7}], ids=str)
@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("served", [100, 512, 513, LONGEST])
def test_longrope_is_that_of_the_longest_context_served(served: int, older: bool, more: dict[str, Any]) -> None:
    config = read(LONGROPE | more, older).served_up_to(served)
    check(config, LONGROPE | more, served)
    assert config.max_position_embeddings == LONGEST
    if served == LONGEST:
        check(read(LONGROPE | more, older), LONGROPE | more, served)


def test_longrope_with_a_factor_for_each_length() -> None:
    """Phi-3.5-MoE has its own factors of cosines and sines in place of the computed one."""
    rope = LONGROPE | {"short_mscale": 1.1, "long_mscale": 1.9}
    for served, factor in ((512, 1.1), (513, 1.9)):
        config, computed = read(rope).served_up_to(served), read(LONGROPE | {"attention_factor": factor})
        assert config.rope is not None and computed.rope is not None
        ours, same = (
            Rotary.build(replace(each, served_length=served), torch.device("cpu"))
            for each in (config.rope, computed.rope)
        )
        assert ours.attention_factor == factor
        assert torch.equal(ours.angles(POSITIONS, torch.float32)[0], same.angles(POSITIONS, torch.float32)[0])


def test_the_original_length_stands_beside_the_parameters() -> None:
    """Phi-3's files have it there, and it has precedence."""
    config = read({**LONGROPE, "original_max_position_embeddings": 9}, original_max_position_embeddings=512)
    check(config, LONGROPE, LONGEST)


def test_mrope_is_the_default_for_text() -> None:
    plain = read({"rope_type": "default"})
    for older in (False, True):
        assert read({"rope_type": "mrope", "mrope_section": [4, 4, 4]}, older) == plain
    fields = Fields(
        SIZES | {"rope_parameters": {"rope_theta": 5000.0, "mrope_section": [4], "mrope_interleaved": True}}
    )
    assert read_rotary_decoder(fields, max_position_embeddings=1) == plain and fields.warnings == []


def test_a_name_of_a_kind_that_a_family_has_for_another() -> None:
    form = RopeForm(renamed={"su": "longrope"})
    assert read({**LONGROPE, "rope_type": "su"}, form=form) == read(LONGROPE)


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        (LONGROPE | {"short_factor": SHORT[1:]}, "rope_parameters.short_factor must be a list of 12 numbers"),
        (LONGROPE | {"long_factor": [*LONG[1:], 0]}, "rope_parameters.long_factor must be a list of positive numbers"),
        (
            LONGROPE | {"long_factor": [*LONG[1:], "1"]},
            "rope_parameters.long_factor must be a list of positive numbers",
        ),
        (LONGROPE | {"short_factor": None}, "the field rope_parameters.short_factor is missing"),
        (LONGROPE | {"attention_factor": 0}, "rope_parameters.attention_factor must be a number above 0"),
        (DYNAMIC | {"factor": 0.5}, "rope_parameters.factor must be a number of at least 1"),
        (DYNAMIC | {"factor": None}, "the field rope_parameters.factor is missing"),
        (DYNAMIC | {"partial_rotary_factor": 0.1}, "dynamic needs more than the 2 dimensions"),
    ],
)
def test_faults_name_the_field(rope: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read(rope)
