"""The walls between the rooms. The tables below are the rules; docs/architecture.md draws them.

Two kinds of tests: what each file imports, read from its source, and what an interpreter has loaded that imported it.
"""

import importlib
import pkgutil
import subprocess
import sys

import pytest

import ember.engine
import ember.engine.description
import ember.front
from tests.support.imports import cycles, imported_names, imports, module_files

# From top to bottom. A room may import itself and what is in a line below its own; rooms of one line leave each other
# alone. Imports in functions and under TYPE_CHECKING count.
FRONT = (
    ("ember.front.worker", "ember.front.http", "ember.front.offline"),
    ("ember.front.start",),
    ("ember.front.formats", "ember.front.generation_config"),
    ("ember.front.api",),
    ("ember.front.text", "ember.front.link"),
    ("ember.front.metrics",),
    ("ember.front.errors", "ember.front.loop", "ember.front.signals", "ember.front.tracing"),
)
ENGINE = (
    ("ember.engine.__main__",),
    ("ember.engine.core",),
    ("ember.engine.fallback",),
    ("ember.engine.loading",),
    ("ember.engine.models",),
    ("ember.engine.operators",),
    ("ember.engine.quantization",),
    ("ember.engine.layers",),
    ("ember.engine.description",),
    ("ember.engine.errors", "ember.engine.lean"),
)
PLATFORM = (("ember.platform",),)
ENTRY = ("ember.cli", "ember.__main__")  # these and what is in them may import everything
# All other modules directly in `ember`, and these rooms, are the ground: everybody may import them, and they import the
# ground alone.
GROUND = ("ember.settings", "ember.gguf", "ember.page")
PACKAGES = ("ember", "ember.front", "ember.engine", "ember.demo")  # whose own `__init__` is ground too

KERNELS = {  # package -> who may import it; a package of kernels imports nothing of ours but itself
    "ember_kernels": ("ember.engine.core", "ember.engine.operators"),
    "ember_cpu": ("ember.engine.operators", "ember.engine.quantization"),
    "ember_cpu.variants": ("ember.engine.description", "ember.engine.loading"),  # the CPU's flags, before torch
    "ember_cpu.vocabulary": ("ground",),  # for the tokenizers of GGUF files
}
LIBRARIES = {  # room -> what none of its files imports
    "ember.front": {"torch", "triton", "transformers"},
    "ember.engine": {"aiohttp", "runpod", "pydantic", "pydantic_settings", "jinja2", "transformers"},
    "ember.engine.description": {"torch", "triton"},
    "ember.platform": {"torch", "triton", "transformers", "llguidance"},
}
EXCEPT = {"ember.engine.fallback": {"transformers"}}  # a room within one -> what it may import, in functions
LOADED = {  # wing -> what is not loaded when all of it is imported
    "ember.front": {"torch", "triton", "transformers", "llguidance", "ember.engine", "ember.page"},
    "ember.engine": {
        *("aiohttp", "runpod", "pydantic", "pydantic_settings", "jinja2", "transformers", "ember.front"),
        "llguidance",  # with the first grammar, not with the boot
    },
}
PLANNING = ["ember.engine.loading.plan", "ember.engine.loading.mapped", "ember.engine.loading.load"]  # without torch

FILES = module_files()
GRAPH = imports(FILES)
ROOMS = [room for order in (FRONT, ENGINE, PLATFORM) for line in order for room in line]


def is_in(module: str, room: str) -> bool:
    return module == room or module.startswith(room + ".")


def room_of(module: str) -> str:
    """The room, "entry", "ground", or the package of kernels that a module is in."""
    for room in ROOMS:
        if is_in(module, room):
            return room
    if any(is_in(module, entry) for entry in ENTRY):
        return "entry"
    top = module.split(".")
    if top[0] in KERNELS:
        return top[0]
    is_ground = len(top) <= 2 and (FILES[module].name != "__init__.py" or module in PACKAGES)
    is_ground = is_ground or any(is_in(module, room) for room in GROUND)
    assert is_ground, f"{module} is in no room: give it one in the tables of this file"
    return "ground"


def may_import(module: str, other: str) -> bool:
    room, target = room_of(module), room_of(other)
    if room == "entry" or room == target:
        return True
    if target in KERNELS:
        return any(is_in(other, part) and room in users for part, users in KERNELS.items())
    if target == "ground":
        return room not in KERNELS
    for order in (FRONT, ENGINE, PLATFORM):
        lines = {name: number for number, line in enumerate(order) for name in line}
        if room in lines and target in lines:
            return lines[room] < lines[target]
    return False


def test_every_module_is_in_a_room_and_every_room_has_modules():
    assert {room_of(module) for module in FILES} == {*ROOMS, "entry", "ground", "ember_kernels", "ember_cpu"}


def test_every_import_leads_downwards():
    wrong = [
        f"{module} imports {other}"
        for module, others in GRAPH.items()
        for other in sorted(others)
        if not may_import(module, other)
    ]
    assert wrong == []


def test_no_modules_import_each_other():
    assert cycles(GRAPH) == []


@pytest.mark.parametrize("room", LIBRARIES)
def test_no_file_of_a_room_imports_a_library_that_is_not_its_own(room):
    found = {
        f"{module} imports {name}"
        for module, file in FILES.items()
        if is_in(module, room)
        for name in imported_names(file, module)
        if name.partition(".")[0] in LIBRARIES[room] - EXCEPT.get(room_of(module), set())
    }
    assert sorted(found) == []


def test_the_rules_see_what_breaks_them(tmp_path):
    """The readers of this file, on files that do what is forbidden."""
    (tmp_path / "one.py").write_text("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from two import B\n")
    (tmp_path / "two.py").write_text("def f():\n    import three.inner\n")
    (tmp_path / "three").mkdir()
    (tmp_path / "three" / "__init__.py").write_text("")
    (tmp_path / "three" / "inner.py").write_text("from .. import one\nfrom . import other\n")
    (tmp_path / "three" / "other.py").write_text("import torch.nn\n")
    files = module_files((tmp_path,))
    graph = imports(files)
    assert graph["one"] == {"two"} and graph["two"] == {"three.inner"}
    assert graph["three.inner"] >= {"three.other"}
    assert "torch.nn" in set(imported_names(files["three.other"], "three.other"))
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set()}) == [["a", "b", "c"]]
    assert not may_import("ember.engine.layers.linear", "ember.engine.quantization.cpu_int")
    assert not may_import("ember.front.http.app", "ember.front.worker.handler")
    assert not may_import("ember.platform.jobs", "ember.front.errors")
    assert not may_import("ember.wire", "ember.front.errors")
    assert not may_import("ember_kernels.step", "ember.wire")
    assert not may_import("ember.engine.loading.load", "ember_cpu.library")
    assert may_import("ember.engine.core.engine", "ember.engine.errors")


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
    assert not loaded & LOADED[package.__name__]


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
    libraries = (".decoder_", ".text_vocabulary")  # which are no modules
    names = [package, *(name for name in found if not any(part in name for part in libraries))]
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
