"""Sampling defaults of the deployment: where they come from, and which are refused."""

import json
import os

import pytest

from ember.front.generation_config import generation_defaults
from ember.settings import Settings


def settings(**values) -> Settings:
    return Settings(model_name="m", **values)


def write(directory, content) -> None:
    (directory / "generation_config.json").write_text(content if isinstance(content, str) else json.dumps(content))


def test_the_models_own_defaults_and_nothing_else_of_its_file(tmp_path):
    write(tmp_path, {"temperature": 0.6, "top_k": 20, "top_p": None, "do_sample": True, "eos_token_id": [1, 2]})
    assert generation_defaults(settings(), tmp_path) == {"temperature": 0.6, "top_k": 20}
    assert generation_defaults(settings(generation_config="vllm"), tmp_path) == {}


def test_the_override_is_stronger_and_another_directory_may_be_named(tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    write(tmp_path, {"temperature": 0.6})
    write(other, {"temperature": 0.7, "top_p": 0.5})
    chosen = settings(generation_config=str(other), override_generation_config={"top_p": 0.9})
    assert generation_defaults(chosen, tmp_path) == {"temperature": 0.7, "top_p": 0.9}


def test_numbers_are_taken_as_requests_take_them(tmp_path):
    content = {"top_k": 20.0, "top_p": "0.9", "temperature": 1, "max_new_tokens": "64", "skip_special_tokens": "False"}
    write(tmp_path, content)
    found = generation_defaults(settings(override_generation_config={"top_k": "7.0", "min_p": None}), tmp_path)
    assert found == {
        "top_k": 7,
        "top_p": 0.9,
        "temperature": 1,
        "max_new_tokens": 64,
        "skip_special_tokens": False,
        "min_p": None,
    }
    assert type(found["top_k"]) is int and type(found["max_new_tokens"]) is int


def test_what_is_no_regular_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "generation_config.json")
    with pytest.raises(ValueError, match="not a regular file"):
        generation_defaults(settings(), tmp_path)


def test_no_file_is_no_defaults(tmp_path):
    assert generation_defaults(settings(), tmp_path) == {}


@pytest.mark.parametrize(
    ("content", "override", "says"),
    [
        ("{", {}, r"generation_config\.json cannot be read as JSON"),
        ("[]", {}, r"generation_config\.json cannot be read as JSON \(it is not a JSON object\)"),
        ({"top_k": 20.5}, {}, r"top_k must be a whole number, 0 \(disable\), or at least 1, not 20\.5"),
        ({"top_k": float("inf")}, {}, r"top_k must be a whole number.*inf"),
        ({"top_k": True}, {}, r"top_k must be a whole number.*True"),
        ({"top_p": "half"}, {}, r"top_p must be a number, in \(0, 1\], not 'half'"),
        ({"temperature": float("nan")}, {}, r"temperature must be a number.*nan"),
        ({"max_new_tokens": 0.5}, {}, r"max_new_tokens must be a whole number of at least 1, not 0\.5"),
        ({"max_new_tokens": 1e300}, {}, r"max_new_tokens must be a whole number of at least 1"),
        ({"max_new_tokens": [5]}, {}, r"max_new_tokens must be a whole number"),
        ({}, {"skip_special_tokens": "maybe"}, r"OVERRIDE_GENERATION_CONFIG: .*skip_special_tokens must be true or"),
        ('{"a":' * 1000, {}, r"generation_config\.json cannot be read as JSON \(it is nested more than"),
        ({"temperature": "hot"}, {}, r"generation_config\.json: .*temperature.*hot"),
        ({}, {"temperature": 3}, r"OVERRIDE_GENERATION_CONFIG: .*temperature.*3"),
        ({}, {"temprature": 1}, r"OVERRIDE_GENERATION_CONFIG: .*temprature"),
    ],
)
def test_what_cannot_be_used_is_one_line(tmp_path, content, override, says):
    write(tmp_path, content)
    with pytest.raises(ValueError, match=says) as caught:
        generation_defaults(settings(override_generation_config=override), tmp_path)
    assert "\n" not in str(caught.value)
