"""`.runpod`: the listing and its tests, against the format that RunPod's publishing guide documents."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from ember import listing
from ember.front.api.routes import ROUTER
from ember.front.worker.inputs import parse_input
from ember.settings import Settings, SettingsError, load_settings, variable_names
from ember.settings.known import KNOWN_UNUSED

ROOT = Path(__file__).resolve().parents[2]
HUB = json.loads((ROOT / ".runpod" / "hub.json").read_text())
TESTS = json.loads((ROOT / ".runpod" / "tests.json").read_text())

SCALAR = {"type": ["string", "number", "boolean"]}
CUDA_VERSIONS = {"type": "array", "minItems": 1, "items": {"type": "string", "pattern": r"^\d+\.\d+$"}}
FIXED_VALUE = {
    "type": "object",
    "required": ["key", "value"],
    "additionalProperties": False,
    "properties": {"key": {"type": "string"}, "value": {"type": "string"}},
}
QUESTION = {
    "type": "object",
    "required": ["key", "input"],
    "additionalProperties": False,
    "properties": {
        "key": {"type": "string", "pattern": "^[A-Z][A-Z0-9_]*$"},
        "input": {
            "type": "object",
            "required": ["name", "type", "description"],
            "additionalProperties": False,
            "properties": {
                "name": {"type": "string", "minLength": 1},
                "type": {"enum": ["string", "number", "boolean", "huggingface"]},
                "description": {"type": "string", "minLength": 1},
                "default": SCALAR,
                "required": {"type": "boolean"},
                "advanced": {"type": "boolean"},
                "min": {"type": "number"},
                "max": {"type": "number"},
                "trueValue": {"type": "string"},
                "falseValue": {"type": "string"},
                "options": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["label", "value"],
                        "additionalProperties": False,
                        "properties": {"label": {"type": "string"}, "value": {"type": "string"}},
                    },
                },
            },
        },
    },
}
HUB_FORMAT = {
    "type": "object",
    "required": ["title", "description", "type", "category", "config"],
    "additionalProperties": False,
    "properties": {
        "title": {"type": "string"},
        "description": {"type": "string"},
        "type": {"const": "serverless"},
        "category": {"enum": ["audio", "embedding", "language", "video", "image"]},
        "iconUrl": {"type": "string", "format": "uri"},
        "config": {
            "type": "object",
            "required": ["runsOn", "containerDiskInGb"],
            "additionalProperties": False,
            "properties": {
                "runsOn": {"enum": ["GPU", "CPU"]},
                "endpointType": {"const": "LB"},
                "containerDiskInGb": {"type": "integer", "minimum": 1},
                "cpuFlavor": {"type": "string"},
                "gpuCount": {"type": "integer", "minimum": 1},
                "gpuIds": {"type": "string"},
                "allowedCudaVersions": CUDA_VERSIONS,
                "presets": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["name", "defaults"],
                        "additionalProperties": False,
                        "properties": {
                            "name": {"type": "string"},
                            "defaults": {"type": "object", "additionalProperties": SCALAR},
                        },
                    },
                },
                "env": {"type": "array", "items": {"oneOf": [FIXED_VALUE, QUESTION]}},
            },
        },
    },
}
TESTS_FORMAT = {
    "type": "object",
    "required": ["tests"],
    "additionalProperties": False,
    "properties": {
        "tests": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["name", "input"],
                "additionalProperties": False,
                "properties": {
                    "name": {"type": "string"},
                    "input": {"type": "object"},
                    "timeout": {"type": "integer", "minimum": 1000},
                },
            },
        },
        "config": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "gpuTypeId": {"type": "string"},
                "gpuCount": {"type": "integer"},
                "cpuFlavor": {"type": "string"},
                "env": {"type": "array", "items": FIXED_VALUE},
                "allowedCudaVersions": CUDA_VERSIONS,
            },
        },
    },
}
# The pools of GPUs that RunPod lists; an entry may also name one GPU, or take one out with a minus.
POOLS = {
    "AMPERE_16",
    "AMPERE_24",
    "ADA_24",
    "ADA_32_PRO",
    "AMPERE_48",
    "ADA_48_PRO",
    "AMPERE_80",
    "ADA_80_PRO",
    "HOPPER_141",
}
ENTRIES = {entry["key"]: entry["input"] for entry in HUB["config"]["env"]}


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for field in Settings.model_fields:
        for name in variable_names(field):
            monkeypatch.delenv(name, raising=False)


def test_the_files_have_the_documented_form() -> None:
    jsonschema.validate(HUB, HUB_FORMAT)
    jsonschema.validate(TESTS, TESTS_FORMAT)
    assert set(HUB["config"]["gpuIds"].split(",")) <= POOLS


@pytest.mark.parametrize(("document", "form"), [(HUB, HUB_FORMAT), (TESTS, TESTS_FORMAT)])
def test_the_form_refuses_what_it_should(document: dict[str, Any], form: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**document, "groups": []}, form)


def test_the_listing_is_up_to_date() -> None:
    assert listing.hub_listing() == HUB, "run: make hub"
    command = [sys.executable, "-m", "ember", "settings", "--hub"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed == (ROOT / ".runpod" / "hub.json").read_text()


def test_every_key_is_read_and_every_setting_is_listed_or_left_out_on_purpose() -> None:
    names = {variable_names(field)[0]: field for field in Settings.model_fields}
    assert set(ENTRIES) <= set(names) and not set(ENTRIES) & set(KNOWN_UNUSED)
    assert {names[key] for key in ENTRIES} | set(listing.LEFT_OUT) == set(Settings.model_fields)
    assert len(ENTRIES) == len(HUB["config"]["env"])


def test_a_group_is_in_one_piece_and_the_basic_settings_come_first() -> None:
    keys = list(ENTRIES)
    assert keys[: len(listing.BASIC)] == [variable_names(field)[0] for field in listing.BASIC]
    assert all(("advanced" in entry) == (index >= len(listing.BASIC)) for index, entry in enumerate(ENTRIES.values()))
    groups = [entry["name"].partition(":")[0] for entry in list(ENTRIES.values())[len(listing.BASIC) :]]
    changes = [group for index, group in enumerate(groups) if index == 0 or groups[index - 1] != group]
    assert len(changes) == len(set(changes)) and set(listing.GROUPS) <= set(changes)


def test_deploying_with_every_default_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = load_settings({"model_name": "org/name"})
    for key, entry in ENTRIES.items():
        if "default" in entry:
            value = entry["default"]
            is_switch = isinstance(value, bool)
            monkeypatch.setenv(key, entry["trueValue" if value else "falseValue"] if is_switch else str(value))
    assert load_settings({"model_name": "org/name"}) == plain


@pytest.mark.parametrize("key", [key for key, entry in ENTRIES.items() if "options" in entry])
def test_every_option_is_accepted(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for option in ENTRIES[key]["options"]:
        monkeypatch.setenv(key, option["value"])
        load_settings()


@pytest.mark.parametrize("key", [key for key, entry in ENTRIES.items() if "max" in entry])
def test_bounds_are_those_of_the_code(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(key, str(ENTRIES[key]["max"]))
    load_settings()
    monkeypatch.setenv(key, str(ENTRIES[key]["max"] + 1))
    with pytest.raises(SettingsError):
        load_settings()


def test_presets_set_variables_that_are_read() -> None:
    presets = HUB["config"]["presets"]
    assert len({preset["name"] for preset in presets}) == len(presets) >= 10
    for preset in presets:
        assert set(preset["defaults"]) <= set(ENTRIES)
        assert preset["defaults"]["MODEL_NAME"].count("/") == 1


def test_the_hubs_tests_are_jobs_that_the_worker_understands() -> None:
    for test in TESTS["tests"]:
        parse_input(test["input"], ROUTER, model="org/name")
    assert {entry["key"] for entry in TESTS["config"]["env"]} <= set(ENTRIES)
