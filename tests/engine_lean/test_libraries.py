"""What is imported while torch's libraries are loaded must not wait for the dynamic loader's lock."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
from ember.engine.lean import libraries
from importlib import import_module
for name in libraries.EXTENSIONS:
    import_module(name)
import ctypes
before = set(sys.modules)
import ember.engine.core.process
import ember.engine.loading.load, ember.engine.loading.resolve, ember.engine.loading.files
assert "torch" not in sys.modules
files = {name: getattr(sys.modules[name], "__file__", None) or "" for name in set(sys.modules) - before}
late = [name for name, file in files.items() if file.endswith(".so")]
assert not late, late
"""


def test_every_extension_module_before_torch_is_imported_first():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
