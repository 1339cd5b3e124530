"""Messages for failed downloads: one line each, with advice for the person who set MODEL_NAME, and without the token.

A failure is a chain of exceptions whose classes differ between versions of huggingface_hub and of its HTTP library. The
messages depend only on the operating system's error number, the HTTP status and the Hub's own classes.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from pathlib import Path

from ember.engine.loading.hub_files import Repository

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
_NOT_WRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS}
_NETWORK_LIBRARIES = ("httpx", "httpcore", "requests", "urllib3", "ssl")


def may_pass(error: Exception) -> bool:
    """Whether the same call may succeed a moment later."""
    chain = list(_chain(error))
    if any(getattr(link, "errno", None) in _NO_SPACE | _NOT_WRITABLE for link in chain):
        return False
    status = _status(chain)
    return status >= 500 or status in (408, 429) or (status == 0 and any(_is_network(link) for link in chain))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and the chain of its causes."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _status(chain: Iterable[BaseException]) -> int:
    """The HTTP status of the Hub's response; 0 if there was none."""
    for link in chain:
        status = getattr(getattr(link, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
    return 0


def _is_network(error: BaseException) -> bool:
    library = type(error).__module__.partition(".")[0]
    return library.startswith(_NETWORK_LIBRARIES) or isinstance(error, ConnectionError | TimeoutError)


def no_space(label: str, cache_dir: Path, detail: str) -> str:
    return (
        f"{label} does not fit into {cache_dir} ({detail}): give the container a larger disk, mount a volume and set "
        "DOWNLOAD_DIR to it, or bake the model into the image"
    )


def explain(error: Exception, repository: Repository, cache_dir: Path, *, has_token: bool) -> str:
    """One line that says what failed and what to do. It never contains the token."""
    from huggingface_hub import errors

    label = repository.label
    chain = list(_chain(error))
    kinds = tuple(type(link) for link in chain)
    texts = " ".join(str(link) for link in chain)

    def has(*wanted: type[BaseException]) -> bool:
        return any(issubclass(kind, wanted) for kind in kinds)

    number = next((link.errno for link in chain if isinstance(link, OSError) and link.errno), None)
    if number in _NO_SPACE or "No space left on device" in texts or "Disk quota exceeded" in texts:
        return no_space(label, cache_dir, "no space left on it")
    if number in _NOT_WRITABLE:
        return f"{cache_dir} cannot be written: set DOWNLOAD_DIR (or HF_HOME) to a directory that can"
    status = _status(chain)
    if has(errors.GatedRepoError):
        if has_token and status == 403:
            return f"{label} is gated and HF_TOKEN's account has no access: accept its terms on huggingface.co"
        return f"{label} is gated: accept its terms on huggingface.co and set HF_TOKEN to a token of that account"
    if has(errors.RevisionNotFoundError):
        wrong = f"{repository.name} has no revision {repository.revision!r}"
        return f"{wrong}: set {repository.revision_setting} to a branch, tag or commit"
    if status == 401 and has_token:
        return f"the Hub refuses HF_TOKEN (401): set it to a valid token, or unset it if {label} is public"
    if has(errors.RepositoryNotFoundError):
        advice = "or use an HF_TOKEN that may read it" if has_token else "or set HF_TOKEN if it is private"
        return f"{label} was not found on the Hugging Face Hub: check {repository.setting}, {advice}"
    if has(errors.HFValidationError):
        return f"{repository.name} is neither an existing directory nor a Hugging Face id (organisation/model)"
    if status in (401, 403):
        return f"the Hub refuses access to {label} ({status}): set HF_TOKEN to a token that may read it"
    if status == 429:
        return (
            f"the Hub refuses {label} for now, too many requests (429): set HF_TOKEN, which raises the limit, or wait"
        )
    if status >= 500:
        advice = "try again later, or provide the files on a volume or in the image"
        return f"{label} is not cached here and the Hub fails ({status}): {advice}"
    if any(_is_network(link) for link in chain) or has(errors.LocalEntryNotFoundError):
        reason = _first_line(chain[-1])
        return (
            f"{label} is not cached here and the Hub cannot be reached ({reason}): check the network, or provide the "
            "files on a volume or in the image"
        )
    return f"{label} could not be downloaded: {type(error).__name__}: {_first_line(error)}"


def readable(nbytes: float) -> str:
    """A size in words, such as 12.3 GB or 4.5 MB."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= size:
            return f"{nbytes / size:.1f} {unit}"
    return f"{nbytes:.0f} bytes"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
