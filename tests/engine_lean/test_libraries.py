"""torch's libraries are loaded by a thread before torch is imported, or left to torch."""

import subprocess
import sys
import textwrap

import pytest


def run(code: str, *arguments: str) -> None:
    command = [sys.executable, "-c", textwrap.dedent(code), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="other loaders")
def test_torch_finds_them_loaded_and_works():
    run("""
        from ember.boot import now
        from ember.engine.lean import libraries
        assert libraries.wait() is None
        before = now()
        libraries.start_loading()
        began, ended = libraries.wait()
        assert before <= began < ended <= now()
        with open("/proc/self/maps") as file:
            assert "/libtorch_cpu.so" in file.read()
        import sys
        assert "torch" not in sys.modules
        import torch
        assert (torch.ones(3, 4) @ torch.ones(4, 2)).sum().item() == 24
        torch.set_num_threads(2)
        try:
            torch.empty(-1)
        except RuntimeError as error:  # an exception that crosses the libraries
            assert "negative" in str(error)
        """)


@pytest.mark.parametrize("content", [None, b"no library"])
def test_what_cannot_be_loaded_is_left_to_torch(tmp_path, content):
    directory = tmp_path / "torch" / "lib"
    directory.mkdir(parents=True)
    if content is not None:
        (directory / "libtorch_global_deps.so").write_bytes(content)
    run(
        """
        import sys
        sys.path.insert(0, sys.argv[1])
        from ember.engine.lean import libraries
        libraries.start_loading()
        assert libraries.wait() is not None
        sys.path[:] = []
        """,
        str(tmp_path),
    )
