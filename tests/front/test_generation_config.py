"""Sampling defaults of the deployment: where they come from, and which are refused."""

import json

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


def test_no_file_is_no_defaults(tmp_path):
    assert generation_defaults(settings(), tmp_path) == {}


@pytest.mark.parametrize(
    ("content", "override", "says"),
    [
        ("{", {}, r"generation_config\.json is not valid JSON"),
        ("[]", {}, r"generation_config\.json is not a JSON object"),
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
