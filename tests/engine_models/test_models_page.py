"""docs/models.md is what `ember models` prints, and what it says about the tests is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ember import cli
from ember.cli.models import page, typical
from ember.engine.description.families.registry import ARCHITECTURES, ENCODERS
from ember.engine.description.operator_sets import check_features
from ember.engine.description.shells import SHELLS
from tests.engine_models.test_shells import TINY
from tests.engine_models.tiny import VARIANTS, model_class
from tests.engine_models.tiny_encoders import ENCODER_VARIANTS

DOCS = Path(__file__).parents[2] / "docs"
# Families that transformers has no classes of.
OWN_CODE = {
    name
    for tests in ("test_own_code_families.py", "test_renamed_families.py")
    for name in re.findall(r'"(\w+)"', (Path(__file__).parent / tests).read_text())
    if name in ARCHITECTURES
}


def test_the_page_is_printed_by_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models"]) == 0
    printed = capsys.readouterr().out
    assert (DOCS / "models.md").read_text() == printed, "write it anew: ember models > docs/models.md"


def test_every_class_is_on_it_and_tested() -> None:
    text = page()
    for architecture in ARCHITECTURES | ENCODERS:
        assert f"| `{architecture}` |" in text
    tested = {model_class(name) for name, _ in VARIANTS.values()} | OWN_CODE
    assert {name for name, _ in ENCODER_VARIANTS.values()} | {"NewModel"} == set(ENCODERS)
    tested |= {str(SHELLS[f"{kind}ForConditionalGeneration"].architecture) for kind, *_ in TINY.values()} - {"None"}
    assert tested == set(ARCHITECTURES)
    served = {name for name, shell in SHELLS.items() if shell.architecture in (None, *ARCHITECTURES)}
    assert {f"{kind}ForConditionalGeneration" for kind, *_ in TINY.values()} == served
    for name in SHELLS:
        assert (f"| `{name}` |" in text) == (name in served)


@pytest.mark.parametrize("architecture", ARCHITECTURES | ENCODERS)
def test_its_typical_models_are_served(architecture: str) -> None:
    check_features(typical(architecture))
