"""Make the list of modules that a lean import of torch defers: `python -m builder.lean_torch [--into DIRECTORY]`.

Every step runs in a fresh process. The plain import is traced first: its modules, their order, and the time of each.
Then the import is tried with every module deferred. A module that is used on the way is needed and leaves the list, and
the import is tried again, until no module is used. The same is done with the engine's probe (builder/lean_probe.py),
which runs the operators, dtypes and kernels of a boot and of requests, and with a comparison of the registered kernels.

`from deferred import name` need not execute the module if the importing module's source (`builder.lean_sources`) shows
that a `DeferredName` does for the name.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import msgspec

from builder.lean_sources import Source
from ember.engine.lean.torch_list import DIRECTORY, TorchList, find_torch

_NEEDED = (
    # Imported for what it registers and never touched, by modules that read the registry when they are imported.
    "torch._logging._registrations",
    # torch's C++ code reads it under a lock of its own (std::call_once) whenever a device is given, as does the code of
    # deferred modules: an import that is completed from there would wait for itself.
    "torch.fx.experimental.sym_node",
    # It has tensors shared when they are sent to another process, which may be done without a touch of it.
    "torch.multiprocessing",
    # What a boot on a GPU goes through; a machine without one cannot show it.
    "torch.cuda._utils",
    "torch.cuda.graphs",
    "torch.cuda.memory",
    "torch.cuda.random",
    "torch.cuda.streams",
)
# Overrides of operators on CUDA, which are registered when they are imported, and which nobody touches.
_NEEDED_FOR_CUDA = ("torch._native",)
_MOST_TRIES = 60

_TRACE = """
import json, sys
order = []
class Recorder:
    def find_spec(self, name, path=None, target=None):
        order.append(name)
sys.meta_path.insert(0, Recorder())
import torch
found = {}
for name in dict.fromkeys(order):
    module = sys.modules.get(name)
    spec = getattr(module, "__spec__", None)
    if name.partition(".")[0] not in ("torch", "torchgen") or name == "torch" or spec is None or spec.name != name:
        continue
    if (spec.origin or "").endswith(".py"):
        names = getattr(module, "__all__", None)
        submodules = [n for n, v in vars(module).items() if v is sys.modules.get(f"{name}.{n}")]
        found[name] = {"file": spec.origin, "is_package": spec.submodule_search_locations is not None,
                       "is_bound": name.rpartition(".")[2] in vars(sys.modules.get(name.rpartition(".")[0], sys)),
                       "all": names and list(names), "submodules": submodules, "is_plain": type(module) is type(sys)}
root = sys.modules["torch"]
found["torch"] = {"file": root.__file__, "is_package": True, "is_plain": True, "all": list(root.__all__),
                  "submodules": [n for n, v in vars(root).items() if v is sys.modules.get(f"torch.{n}")]}
print(json.dumps(found))
"""

_TRY = """
import json, sys, traceback
from pathlib import Path
from ember.engine.lean import lean_import, torch_list
from ember.engine.lean.deferred import DeferredName, raw_dict
import msgspec
lean = lean_import.prepare(torch_list=msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=torch_list.TorchList))
report = {"error": None, "bound": [], "held": [], "probed": None}
def find_bound():
    for name, module in list(sys.modules.items()):
        if type(module) is not lean_import.DeferredModule:
            for key, value in list(vars(module).items()):
                if type(value) is DeferredName:
                    report["bound"].append([name, key, value._ember_module.__name__, value._ember_name])
try:
    try:
        import torch
    finally:
        find_bound()
    import gc
    places = [id(raw_dict(module)) for module in sys.modules.values() if isinstance(module, type(sys))]
    places.append(id(lean.deferral.given))
    for deferred in lean.deferral.given.values():
        for holder in gc.get_referrers(deferred):
            if id(holder) not in places and isinstance(holder, (dict, list, tuple, set, type(lambda: 0))):
                report["held"].append([deferred._ember_module.__name__, deferred._ember_name])
    lean.finish()
    if len(sys.argv) > 2:
        from builder.lean_probe import run
        report["probed"] = run(lambda: lean.is_complete)
except BaseException as error:
    report["error"] = traceback.format_exc()
    report["files"] = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
report["given"] = list(lean.deferral.given)
report["touched"] = lean.deferral.touched
report["completed_for"] = lean.deferral.completed_for
print("\\n" + json.dumps(report))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--into", type=Path, default=DIRECTORY, help="directory for torch-VERSION.json")
    parser.add_argument("--own-build", action="store_true", help="for this very build of torch, as 2.13.0+cu130")
    options = parser.parse_args()
    torch_list = make_list()
    found = find_torch()
    assert found is not None
    if options.own_build or found[1].endswith("+cpu"):
        torch_list = msgspec.structs.replace(torch_list, version=found[1])
    options.into.mkdir(parents=True, exist_ok=True)
    file = options.into / f"torch-{torch_list.version}.json"
    file.write_bytes(msgspec.json.format(msgspec.json.encode(torch_list), indent=1) + b"\n")
    for name, gain in sorted(torch_list.milliseconds.items(), key=lambda item: -item[1])[:25]:
        print(f"{gain:8.1f} ms  {name}")
    total = sum(torch_list.milliseconds.values())
    print(f"{file}: {len(torch_list.modules)} modules deferred, {total:.0f} ms of the plain import")


def make_list() -> TorchList:
    """The list for the torch that this Python imports."""
    found = find_torch()
    if found is None:
        raise SystemExit("no torch is installed")
    plain: dict[str, dict[str, Any]] = json.loads(_run(_TRACE))
    sources = {name: Source(name, entry) for name, entry in plain.items()}
    milliseconds = _import_times()
    kept = {"torch", *(name for name, source in sources.items() if source.replaces_itself)}
    always = (*_NEEDED, *(_NEEDED_FOR_CUDA if _is_for_gpus() else ()))
    kept |= {name for name in sources if any(f"{name}.".startswith(f"{needed}.") for needed in always)}
    refused: set[tuple[str, str, str]] = set()  # importer, deferred module, name
    with tempfile.TemporaryDirectory() as scratch:
        candidate = Path(scratch) / "candidate.json"
        for _ in range(_MOST_TRIES):
            torch_list = _make(found[1].partition("+")[0], plain, sources, kept, refused, milliseconds)
            candidate.write_bytes(msgspec.json.encode(torch_list))
            report = _try(candidate, probe=False)
            needed = _needed(report, sources, kept, refused)
            if not needed and report["error"] is None:
                report = _try(candidate, probe=True)
                needed = _needed(report, sources, kept, refused)
            if not needed and report["error"] is None:
                break
            if not needed:
                raise SystemExit(
                    f"the lean import fails, and no module that it touched is to blame:\n{report['error']}"
                )
            print(f"needed: {', '.join(sorted(needed))}", file=sys.stderr)
        else:
            raise SystemExit(f"no list was found in {_MOST_TRIES} tries")
    return _pruned(torch_list)


def _is_for_gpus() -> bool:
    """Whether this build of torch has kernels for CUDA, or for ROCm, which goes by that name too."""
    return bool(json.loads(_run("import json, torch; print(json.dumps(torch.version.cuda or torch.version.hip))")))


def _needed(
    report: dict[str, Any], sources: dict[str, Source], kept: set[str], refused: set[tuple[str, str, str]]
) -> set[str]:
    """What a try showed to be needed; adds it to `kept` and `refused`."""
    needed = {name for name, _ in report["touched"]}
    if report["completed_for"]:
        needed.add(report["completed_for"])
        module = report["completed_for"].rpartition(".")[0]
        if module not in sources or module in kept:
            raise SystemExit(f"the engine needs what cannot be told by a module: {report['completed_for']}")
        kept.add(module)
    kept.update(name for name, _ in report["touched"])
    for importer, name, module, original in report["bound"]:
        source = sources.get(importer)
        if source is None or not source.may_defer(name):  # it came by way of another module
            kept.add(module)
            needed.add(f"{module}.{original} for {importer}")
    for module, name in report["held"]:  # by something that a completed import would not repair
        kept.add(module)
        needed.add(f"{module}.{name}")
    if report["error"] is not None and not needed:
        needed = _blamed(report, sources)
        kept |= needed
    return needed


def _blamed(report: dict[str, Any], sources: dict[str, Source]) -> set[str]:
    """The modules of the deferred names that the failing module has, which may have come by way of others."""
    by_file = {source.file: source for source in sources.values()}
    for file in reversed(report["files"]):
        if file in by_file:
            imported = {name for _, name in by_file[file].imports}
            blamed = {module for module, name in report["given"] if name in imported}
            if blamed:
                return blamed
    return set()


def _make(
    version: str,
    plain: dict[str, dict[str, Any]],
    sources: dict[str, Source],
    kept: set[str],
    refused: set[tuple[str, str, str]],
    milliseconds: dict[str, float],
) -> TorchList:
    modules = {name: entry["is_package"] for name, entry in plain.items() if name not in kept}
    names: dict[str, dict[str, list[str]]] = {}
    stars: dict[str, list[str]] = {}
    for importer, source in sources.items():
        for (module, name), bound in source.imports.items():
            if module not in modules:
                continue
            if name == "*":
                exported = plain[module]["all"]
                if exported is None or not all(
                    source.may_defer(each) and (importer, module, each) not in refused for each in exported
                ):
                    continue
                stars[module] = exported
            elif name in plain[module]["submodules"]:
                if f"{module}.{name}" not in modules:
                    continue
            elif f"{module}.{name}" in plain or (importer, module, name) in refused:
                continue  # a name that hides a submodule
            elif not all(source.may_defer(each) for each in bound):
                continue
            names.setdefault(importer, {}).setdefault(module, []).append(name)
    gains = {name: round(milliseconds.get(name, 0.0), 1) for name in modules}
    # A package that is deferred itself sees to it when it is executed.
    unbound = [name for name in modules if name.rpartition(".")[0] in kept and not plain[name]["is_bound"]]
    return TorchList(
        version, modules, unbound, names, stars, {name: gain for name, gain in gains.items() if gain >= 0.1}
    )


def _pruned(torch_list: TorchList) -> TorchList:
    """The list with the names that the modules that are imported ask for, and no others."""
    importers = {importer for importer in torch_list.names if importer not in torch_list.modules}
    names = {importer: torch_list.names[importer] for importer in sorted(importers)}
    used = {module for modules in names.values() for module in modules}
    stars = {module: exported for module, exported in torch_list.stars.items() if module in used}
    return msgspec.structs.replace(torch_list, names=names, stars=stars)


def _import_times() -> dict[str, float]:
    """Milliseconds of each module's own code in the plain import, without those that it imports; medians of three."""
    found: dict[str, list[float]] = defaultdict(list)
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-c", "import torch"], capture_output=True, text=True, check=True
        )
        for line in done.stderr.splitlines():
            match = re.fullmatch(r"import time:\s*(\d+) \|\s*\d+ \|\s*(\S+)", line)
            if match:
                found[match[2]].append(int(match[1]) / 1000)
    return {name: sorted(times)[len(times) // 2] for name, times in found.items()}


def _try(candidate: Path, probe: bool) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(_run(_TRY, str(candidate), *(["probe"] if probe else [])))
    return report


def _run(code: str, *arguments: str) -> str:
    environment = {**os.environ, "EMBER_LEAN_TORCH": "true"}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment, check=False
    )
    if done.returncode:
        raise SystemExit(f"a step failed:\n{done.stderr}")
    return done.stdout.splitlines()[-1]


if __name__ == "__main__":
    main()
