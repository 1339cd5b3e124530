"""The walls between the wings: what each may load, seen from a fresh interpreter that imports all of it."""

import importlib
import pkgutil
import subprocess
import sys

import pytest

import ember.engine
import ember.engine.description
import ember.front

FORBIDDEN = {
    "ember.front": {"torch", "triton", "transformers", "llguidance", "ember.engine"},
    "ember.engine": {
        *("aiohttp", "runpod", "pydantic", "pydantic_settings", "jinja2", "transformers", "ember.front"),
        "llguidance",  # with the first grammar, not with the boot
    },
}
PLANNING = ["ember.engine.loading.plan", "ember.engine.loading.mapped", "ember.engine.loading.load"]  # without torch


def modules(package) -> list[str]:
    found = pkgutil.walk_packages(package.__path__, package.__name__ + ".")
    return [package.__name__, *(module.name for module in found if not module.name.endswith("__main__"))]


@pytest.mark.parametrize("package", [ember.front, ember.engine], ids=["front", "engine"])
def test_importing_a_wing_leaves_the_other_sides_libraries_out(package):
    names = modules(package)
    assert len(names) > 10
    code = f"import sys\nfor name in {names!r}: __import__(name)\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert set(names) <= loaded
    assert not loaded & FORBIDDEN[package.__name__]


def test_descriptions_are_read_without_torch():
    """They are read, and the reading of weights is planned, in a thread beside the import of torch."""
    names = [*modules(ember.engine.description), *PLANNING]
    assert "ember.engine.description.families.llama" in names
    code = f"import sys\nfor name in {names!r}: __import__(name)\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"torch", "numpy", "transformers", "safetensors"}


def test_engine_never_loads_the_compiler_stack():
    names = modules(ember.engine)
    code = f"import sys\nfor name in {names!r}: __import__(name)\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch._dynamo", "torch._inductor", "sympy", "fastapi", "boto3"}
    baseline = subprocess.run(
        [sys.executable, "-c", "import sys, torch; print('\\n'.join(sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert not (set(done.stdout.split()) - set(baseline.stdout.split())) & heavy


@pytest.mark.parametrize("package", ["ember_kernels", "ember_cpu"])
def test_kernels_import_nothing_from_ember(package):
    path = importlib.import_module(package).__path__
    found = (module.name for module in pkgutil.iter_modules(path, f"{package}."))
    names = [package, *(name for name in found if ".decoder_" not in name)]  # those are libraries, not modules
    code = f"import sys\nfor name in {names!r}: __import__(name)\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "ember" not in done.stdout.split()


def test_the_process_of_a_requests_template_loads_no_tokenizer():
    """It starts anew for each such request, in a bounded memory."""
    code = "import sys, ember.front.text.untrusted_child\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "ember.front.text.template" in loaded
    assert not loaded & {"tokenizers", "pydantic", "aiohttp", "orjson"}
