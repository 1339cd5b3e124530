"""Download of the needed files of a Hugging Face repository into a cache of Hugging Face's layout.

Small files come first, so that a model that cannot be served is refused before its weights are downloaded. Then several
weight files are downloaded at once. Existing files are not downloaded again. A broken connection resumes at the byte, a
restarted process at the file where it stopped. Every failure is one ModelError that says what to do.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from ember.engine.description.read_config import read_json
from ember.engine.description.sentence_transformers import read_modules, reader
from ember.engine.errors import ModelError
from ember.engine.loading.files import choose_gguf, choose_weights, is_gguf
from ember.engine.loading.hub_errors import explain, may_pass, no_space, readable
from ember.engine.loading.hub_files import Repository, module_weights, text_files
from ember.engine.loading.progress import Progress, Say

WORKERS = 8  # parallel downloads
TRIES = 3  # attempts of calls that a transient network error can break
TIMEOUT = 10.0  # seconds
PAUSE = 1.0  # seconds before the second attempt, twice that before the third
REPORT_SECONDS = 5.0  # between two progress lines

Result = TypeVar("Result")


def download(
    repository: Repository,
    cache_dir: Path,
    *,
    token: str | None = None,
    say: Say = lambda line: None,
    check: Callable[[Path], object] = lambda directory: None,
) -> Path:
    """Download a repository and return its snapshot's directory. `say` is called with progress lines. `check` is called
    with the directory when its small files are complete, and may raise ModelError. Raises ModelError."""
    try:
        import huggingface_hub
        from huggingface_hub.utils import disable_progress_bars
    except ImportError:
        raise ModelError(
            f"{repository.label} is not cached here, and huggingface_hub is not installed to download it"
        ) from None
    disable_progress_bars()  # they would write carriage returns to the log
    try:
        return _download(huggingface_hub, repository, cache_dir, token, say, check)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(explain(error, repository, cache_dir, has_token=bool(token))) from None


def _download(
    hub: Any,
    repository: Repository,
    cache_dir: Path,
    token: str | None,
    say: Say,
    check: Callable[[Path], object],
) -> Path:
    name = repository.name
    api = hub.HfApi(token=token, library_name="ember")
    info = patiently(lambda: api.model_info(name, revision=repository.revision, files_metadata=True, timeout=TIMEOUT))
    sizes = {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or []}
    has_gguf = is_gguf(sizes, repository.load_format, repository.choice)
    if not has_gguf and sizes.keys().isdisjoint(repository.required):
        lacks = f"{repository.label} has no {repository.required[0]} on the Hub"
        if any(name.lower().endswith(".gguf") for name in sizes):
            raise ModelError(
                f"{lacks}, but GGUF files: LOAD_FORMAT=auto serves one, and `ember inspect` reads local ones"
            )
        raise ModelError(f"{lacks}: check {repository.setting}")

    def fetch(file: str) -> None:
        patiently(
            lambda: hub.hf_hub_download(
                name, file, revision=info.sha, cache_dir=cache_dir, token=token, etag_timeout=TIMEOUT
            )
        )

    folder = cache_dir / f"models--{name.replace('/', '--')}"
    snapshot = folder / "snapshots" / info.sha
    weights: list[str] = []
    if has_gguf:  # it has all that the other files have
        weights = choose_gguf(repository.label, sizes, repository.choice)
    else:
        small = text_files(sizes, repository.load_format, repository.with_code)
        _fetch_all([file for file in small if not (snapshot / file).exists()], fetch)
        check(snapshot)
    if repository.load_format is not None:
        weights = weights or choose_weights(
            repository.label, sizes, lambda index: _index(snapshot / index), repository.load_format
        )
        if not has_gguf:
            weights = [*weights, *module_weights(sizes, _module_directories(snapshot))]
        missing = {file: sizes[file] for file in weights if not (snapshot / file).exists()}
        _require_space(repository.label, cache_dir, sum(missing.values()))
        if missing:
            _fetch_weights(repository.label, folder / "blobs", missing, fetch, say)
    _write_ref(folder, repository.revision or "main", info.sha)
    return snapshot


def _module_directories(snapshot: Path) -> list[str]:
    """The directories of the modules of sentence-transformers that have weights."""
    try:
        return [each.directory for each in read_modules(reader(snapshot)).dense]
    except ModelError:
        return []  # a model of another kind, or one that the check has let pass


def _index(path: Path) -> dict[str, object]:
    try:
        return read_json(path, required=True)
    except ModelError:
        return {}  # it cannot be read, which `choose_weights` reports


def _require_space(label: str, cache_dir: Path, needed: int) -> None:
    place = next((path for path in (cache_dir, *cache_dir.parents) if path.is_dir()), None)
    if place is None or not needed:
        return
    usage = shutil.disk_usage(place)
    if usage.total and usage.free < needed:
        raise ModelError(no_space(label, cache_dir, f"{readable(needed)} to download, {readable(usage.free)} free"))


def _fetch_weights(label: str, blobs: Path, missing: dict[str, int], fetch: Callable[[str], None], say: Say) -> None:
    """Download the files, largest first, and report progress."""
    total = sum(missing.values())
    say(f"downloading {label}: {len(missing)} weight file{'s' * (len(missing) > 1)}, {readable(total)}, to {blobs}")
    before = _bytes_in(blobs)
    start = time.monotonic()
    progress = Progress(
        f"downloading {label}", total, lambda: _bytes_in(blobs) - before, say, line_seconds=REPORT_SECONDS
    )
    try:
        _fetch_all(sorted(missing, key=lambda file: -missing[file]), fetch, progress)
    finally:
        progress.end()
    seconds = time.monotonic() - start
    say(f"downloaded {label}: {readable(total)} in {seconds:.1f} s, {readable(total / max(seconds, 1e-9))}/s")


def _fetch_all(files: Iterable[str], fetch: Callable[[str], None], progress: Progress | None = None) -> None:
    """Call `fetch` for each file, `WORKERS` at a time. Raises the first error at once and abandons the other calls.

    The threads are daemons, so that a failed boot does not wait for other downloads.
    """
    todo = deque(files)
    errors: list[Exception] = []
    ended = threading.Semaphore(0)

    def work() -> None:
        try:
            while todo and not errors:
                try:
                    file = todo.popleft()
                except IndexError:
                    break
                fetch(file)
        except Exception as error:
            errors.append(error)
        finally:
            ended.release()

    count = min(WORKERS, len(todo))
    for _ in range(count):
        threading.Thread(target=work, name="download", daemon=True).start()
    while count and not errors:
        if ended.acquire(timeout=None if progress is None else progress.tick):
            count -= 1
        if progress is not None:
            progress.step()
    if errors:
        raise errors[0]


def _bytes_in(directory: Path) -> int:
    """The total size in bytes of all files in a directory, including incomplete ones."""
    total = 0
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                total += entry.stat().st_size
    return total


def _write_ref(folder: Path, revision: str, commit: str) -> None:
    """Write the commit of a branch or tag to the cache's refs, for later boots. The file is written atomically."""
    if revision == commit:
        return
    ref = folder / "refs" / revision
    ref.parent.mkdir(parents=True, exist_ok=True)
    draft = ref.with_name(f".{ref.name}.{uuid.uuid4().hex[:8]}")
    draft.write_text(commit)
    draft.replace(ref)


def patiently(call: Callable[[], Result]) -> Result:
    """Call a function, and repeat it after transient errors of the network or the Hub."""
    for number in range(1, TRIES):
        try:
            return call()
        except Exception as error:
            if not may_pass(error):
                raise
            time.sleep(PAUSE * number)
    return call()
