"""Deferred modules and names, on a small package: what touches them gets the real thing, in every way Python has."""

import os
import subprocess
import sys
import textwrap

import pytest

# package "pkg": `kept` is imported and has names of deferred modules; the others are deferred.
FILES = {
    "__init__": "from pkg import kept\nimport pkg.registers\nfrom pkg.shapes import Square\n"
    "def __getattr__(name):\n    raise AttributeError(name)\n",
    "kept": """
LOG = []
from pkg.shapes import Base, Square, area
from pkg.errors import *
import pkg.sub.inner
def check(value): return isinstance(value, (int, Base))
def size(value: Square | None): return area(value)
def side(): return Square.SIDE
def fail(): raise Trouble("bad")
""",
    "shapes": """
from pkg import kept
kept.LOG.append("shapes")
class Base: pass
class Square(Base):
    SIDE = 4
def area(value): return Square.SIDE ** 2
if not hasattr(kept, "is_first"): pass
""",
    "errors": "__all__ = ['Trouble']\nclass Trouble(Exception): pass\n",
    "registers": "from pkg.kept import LOG\nLOG.append('registers')\nimport pkg.reads\n",
    "reads": "from pkg.kept import LOG\nSEEN = list(LOG)\nLOG.append('reads')\n",
    "broken": """
import builtins, os
if kind := os.environ.get('BROKEN'): raise getattr(builtins, kind)('broken')
fine = True
""",
    "swaps": """
import sys, types
class Own(types.ModuleType):
    answer = 42
sys.modules[__name__].__class__ = Own
""",
    "slow": "import time\nfirst = 1\ntime.sleep(0.2)\nlast = 2\n",
    "sub/__init__": "from pkg.kept import LOG\nLOG.append('sub')\nfrom pkg.sub.inner import inner\n",
    "sub/inner": "from pkg.kept import LOG\nLOG.append('inner')\ndef inner(): return 'function'\n",
}
ORDER = ["registers", "reads", "shapes", "errors", "broken", "swaps", "slow", "sub", "sub.inner"]
NAMES = {
    "pkg": {"pkg.shapes": ["Square"]},
    "pkg.kept": {"pkg.shapes": ["Base", "Square", "area"], "pkg.errors": ["*"]},
}
PRELUDE = """
import sys, importlib
sys.path.insert(0, {directory!r})
from types import ModuleType
from ember.engine.lean.deferred import DeferredModule, DeferredName, raw_dict
from ember.engine.lean.lean_import import LeanImport
from ember.engine.lean.torch_list import TorchList
lines = []
listed = TorchList("1", {modules!r}, [], {names!r}, {{"pkg.errors": ["Trouble"]}}, {{}})
lean = LeanImport(listed, {directory!r} + "/pkg", lines.append, package="pkg")
sys.meta_path.insert(0, lean)
import pkg
lean.finish()
assert not lean.deferral.touched and not lean.is_complete
"""


@pytest.fixture
def run(tmp_path):
    for name, text in FILES.items():
        file = tmp_path / "pkg" / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    modules = {f"pkg.{name}": name == "sub" for name in ORDER}
    prelude = PRELUDE.format(directory=str(tmp_path), modules=modules, names=NAMES)

    def run(code: str, **variables: str) -> None:
        done = subprocess.run(
            [sys.executable, "-c", prelude + textwrap.dedent(code)],
            capture_output=True,
            text=True,
            env={**os.environ, **variables},
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    return run


TOUCHES = {
    "attribute": "assert pkg.slow.last == 2",
    "from-import": "from pkg.shapes import area; assert area(None) == 16",
    "submodule": "from pkg.sub.inner import inner; assert inner() == 'function'",
    "name-of-the-package": "assert issubclass(pkg.Square, pkg.shapes.Base)",
    "name-of-a-kept-module": "assert type(pkg.kept.Square) is type",
    "call-inside": "assert pkg.kept.size(None) == 16",
    "isinstance-inside": "assert not pkg.kept.check('x'); assert pkg.kept.check(pkg.shapes.Square())",
    "attribute-inside": "assert pkg.kept.side() == 4",
    "raise-inside": """
try: pkg.kept.fail()
except Exception as error: assert type(error) is pkg.errors.Trouble
else: raise SystemExit('nothing raised')
""",
    "subclass": "class Mine(pkg.shapes.Square): pass\nassert Mine.SIDE == 4 and Mine.__mro__[1] is pkg.kept.Square",
    "hasattr": "assert hasattr(pkg.slow, 'last') and not hasattr(pkg.slow, 'missing')",
    "dir": "assert 'last' in dir(pkg.slow)",
    "vars": "assert vars(pkg.slow)['last'] == 2",
    "vars-of-a-kept-module": "assert vars(pkg.kept)['Square'] is pkg.shapes.Square",
    "dir-of-the-package": "assert 'Square' in dir(pkg)",
    "set": "pkg.slow.last = 3; assert pkg.slow.last == 3 and pkg.slow.first == 1",
    "set-name": "pkg.kept.area = 7; assert pkg.kept.area == 7 and pkg.kept.Square.SIDE == 4",
    "delete": "del pkg.slow.last; assert not hasattr(pkg.slow, 'last') and pkg.slow.first == 1",
    "reload": "module = importlib.reload(pkg.slow); assert module is pkg.slow and module.last == 2",
    "star": "from pkg.errors import *; assert issubclass(Trouble, Exception)",
    "class-of-its-own": "assert pkg.swaps.answer == 42 and type(pkg.swaps).__name__ == 'Own'",
    "new-module": "import pkg.new_one",
}
COMPLETED = """
assert lean.is_complete
for name in {modules!r}:
    module = sys.modules[name]
    assert type(module) is not DeferredModule and module.__spec__.name == name, name
    assert type(module) is ModuleType or name == 'pkg.swaps', name
    assert type(module.__loader__).__name__ == 'SourceFileLoader', name
assert type(pkg.kept) is ModuleType and pkg.kept.Square is pkg.Square is pkg.shapes.Square
assert pkg.kept.size.__annotations__ == {{'value': pkg.Square | None}}
assert pkg.sub.inner() == 'function'  # it hides the module of its name, as it always does
assert not any(type(value) is DeferredName for module in sys.modules.values() if type(module) is ModuleType
               for value in list(vars(module).values()))
assert pkg.kept.LOG == ['registers', 'reads', 'shapes', 'sub', 'inner'], pkg.kept.LOG
assert pkg.reads.SEEN == ['registers']
assert len(lines) == 1 and 'is imported too' in lines[0], lines
"""


@pytest.mark.parametrize("touch", TOUCHES)
def test_a_touch_gives_the_real_thing_and_completes_the_import(run, touch, tmp_path):
    (tmp_path / "pkg" / "new_one.py").write_text("import pkg.slow\nassert type(pkg.slow).__name__ == 'module'\n")
    run(TOUCHES[touch] + COMPLETED.format(modules=[f"pkg.{name}" for name in ORDER]))


def test_what_looks_at_all_modules_executes_none(run):
    run("""
        import inspect, pkgutil, warnings, copyreg
        for name, module in list(sys.modules.items()):
            getattr(module, '__file__', None), getattr(module, '__spec__', None), repr(module)
            getattr(module, '__warningregistry__', None)
        import pkg.slow, pkg.sub.inner
        import pkg.errors as errors
        assert inspect.ismodule(pkg.slow) and isinstance(pkg.slow, ModuleType) and pkg.slow.__name__ == 'pkg.slow'
        assert inspect.getmodule(pkg.kept.check) is pkg.kept
        importlib.import_module('pkg.broken'), importlib.util.find_spec('pkg.slow')
        assert not lean.is_complete and pkg.kept.LOG == [] and lines == []
        """)


@pytest.mark.parametrize("kind", ["ImportError", "AttributeError"])
def test_an_error_is_the_touchers_and_the_next_touch_tries_again(run, kind):
    run(
        """
        import os
        for _ in range(2):
            try:
                hasattr(pkg.slow, 'last')
            except ImportError as error:
                assert 'broken' in str(error)
            else:
                raise SystemExit('no error')
            assert type(pkg.broken) is DeferredModule and not lean.is_complete
        del os.environ['BROKEN']
        assert pkg.slow.last == 2 and pkg.broken.fine and lean.is_complete
        assert pkg.kept.LOG.count('shapes') == 1
        """,
        BROKEN=kind,
    )


def test_threads_see_whole_modules_only(run):
    run("""
        import threading
        found, barrier = [], threading.Barrier(8)
        def touch(i):
            barrier.wait()
            if i % 4 == 0: found.append(pkg.slow.last)
            elif i % 4 == 1: found.append(pkg.kept.size(None) // 8)
            elif i % 4 == 2:
                from pkg.slow import last
                found.append(last)
            else: found.append(importlib.import_module('pkg.slow').last)
        threads = [threading.Thread(target=touch, args=(i,)) for i in range(8)]
        for thread in threads: thread.start()
        for thread in threads: thread.join(30)
        assert found == [2] * 8, found
        assert lean.is_complete and pkg.kept.LOG.count('shapes') == 1
        """)


def test_a_list_that_defers_too_much_costs_time_only(run):
    run("""
        for name in [name for name in sys.modules if name.partition('.')[0] == 'pkg']: del sys.modules[name]
        sys.meta_path.remove(lean)
        listed = TorchList("1", {"pkg.kept": False, "pkg.shapes": False}, [], {}, {}, {})
        lean = LeanImport(listed, lean.directory, lines.append, package="pkg")
        sys.meta_path.insert(0, lean)
        import pkg
        lean.finish()
        assert [name for name, _ in lean.deferral.touched] == ['pkg.kept', 'pkg.shapes']
        assert len(lines) == 1 and 'pkg.kept, pkg.shapes' in lines[0]
        assert pkg.Square.SIDE == 4 and pkg.kept.size(None) == 16
        """)
