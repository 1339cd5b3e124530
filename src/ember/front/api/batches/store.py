"""The directory of a deployment's files and batches (BATCH_DIR).

`files/ID` is a file's content, `files/ID.json` what is known of it, `batches/ID.json` a batch, and `batches/ID.cancel`
the request to cancel it, which is seen by whichever server of the directory runs the batch. An upload is written to
`files/upload-*` until it is complete. JSON is replaced as a whole, so that a crash leaves the old or the new.
"""

from __future__ import annotations

import os
import re
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import orjson

from ember.front.api.exchange import new_id
from ember.front.errors import ApiError

FINAL = ("completed", "failed", "expired", "cancelled")
ORPHAN_SECONDS = 3600.0  # for which a file without a record is not written before it is removed; uploads take less
Record = dict[str, Any]
_ID = re.compile(r"(?:file|batch)[-_][0-9a-f]{32}")


class Store:
    """The records and files of one BATCH_DIR. The constructor and the methods that write raise ApiError 500 where the
    directory cannot be used."""

    def __init__(self, directory: str) -> None:
        self.files = Path(directory).expanduser() / "files"
        self.batches = Path(directory).expanduser() / "batches"
        for path in (self.files, self.batches):
            try:
                path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ApiError(500, f"BATCH_DIR={directory} cannot be used: {error.strerror}.") from None

    # ----------------------------------------------------------------------------------------------------------- files

    def add_file(self, file_id: str, filename: str, purpose: str) -> Record:
        """Describe a file whose content is there."""
        record = {
            "id": file_id,
            "object": "file",
            "bytes": self.content(file_id).stat().st_size,
            "created_at": int(time.time()),
            "expires_at": None,
            "filename": filename,
            "purpose": purpose,
            "status": "processed",
            "status_details": None,
            "_made": time.time(),
        }
        _write(self._record_of(file_id), record)
        return record

    def keep_upload(self, upload: Path, filename: str, purpose: str) -> Record:
        """Make an upload one of the files. Where this fails, its content is removed."""
        file_id = new_id("file-")
        try:
            upload.replace(self.content(file_id))
            return self.add_file(file_id, filename, purpose)
        except BaseException:
            self.content(file_id).unlink(missing_ok=True)
            raise

    def remove_orphans(self) -> None:
        """Remove what a process that was killed has left: uploads and records that were being written, and contents
        without a record that are no results of a batch which is not over."""
        last = time.time() - ORPHAN_SECONDS
        old = [path for room in (self.files, self.batches) for path in room.iterdir() if _written(path) < last]
        unfinished = [batch for batch in _all(self.batches) if batch["status"] not in FINAL]
        results = {batch[name] for batch in unfinished for name in ("_output", "_errors")}
        for path in old:
            is_content = path.parent == self.files and _ID.fullmatch(path.name) is not None
            is_lost = is_content and path.name not in results and not self._record_of(path.name).exists()
            if is_lost or path.name.startswith("upload-") or path.suffix == ".tmp":
                path.unlink(missing_ok=True)

    def _record_of(self, file_id: str) -> Path:
        return self.files / f"{file_id}.json"

    def file(self, file_id: str) -> Record:
        """Raises ApiError 404."""
        return _read(self.files, file_id, "file")

    def content(self, file_id: str) -> Path:
        return self.files / file_id

    def delete_file(self, file_id: str) -> None:
        """Raises ApiError 404, and 400 for the input of a batch that is not over."""
        self.file(file_id)
        for batch in _all(self.batches):
            if batch["input_file_id"] == file_id and batch["status"] not in FINAL:
                raise ApiError(400, f"The file is the input of {batch['id']}, which is not over.", param="file_id")
        self._record_of(file_id).unlink(missing_ok=True)
        self.content(file_id).unlink(missing_ok=True)

    def all_files(self) -> list[Record]:
        return list(_all(self.files))

    # --------------------------------------------------------------------------------------------------------- batches

    def put_batch(self, batch: Record) -> None:
        _write(self.batches / f"{batch['id']}.json", batch)

    def batch(self, batch_id: str) -> Record:
        """Raises ApiError 404."""
        return _read(self.batches, batch_id, "batch")

    def all_batches(self) -> list[Record]:
        return list(_all(self.batches))

    def ask_to_cancel(self, batch_id: str) -> None:
        (self.batches / f"{batch_id}.cancel").touch()

    def is_to_be_cancelled(self, batch_id: str) -> bool:
        return (self.batches / f"{batch_id}.cancel").exists()

    def forget_cancellation(self, batch_id: str) -> None:
        (self.batches / f"{batch_id}.cancel").unlink(missing_ok=True)


def page(records: Iterable[Record], limit: int, after: str | None, order: str = "desc") -> Record:
    """A page of a list, in OpenAI's form. Raises ApiError 400 where there is no such `after`."""
    ordered = sorted(records, key=lambda record: record["_made"], reverse=order == "desc")
    if after is not None:
        places = [place for place, record in enumerate(ordered) if record["id"] == after]
        if not places:
            raise ApiError(400, f"after must be an id of the list, got {after[:80]!r}.", param="after")
        ordered = ordered[places[0] + 1 :]
    shown = [public(record) for record in ordered[:limit]]
    ends = {"first_id": shown[0]["id"], "last_id": shown[-1]["id"]} if shown else {"first_id": None, "last_id": None}
    return {"object": "list", "data": shown, **ends, "has_more": len(ordered) > limit}


def public(record: Record) -> Record:
    """A record without what is for the server alone."""
    return {name: value for name, value in record.items() if not name.startswith("_")}


def _written(path: Path) -> float:
    """When a file was last written, in seconds since the epoch; now, if it was removed meanwhile."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return time.time()


def _all(directory: Path) -> Iterator[Record]:
    """One record after the other, as a deployment may have many thousands."""
    for path in directory.glob("*.json"):
        try:
            record = orjson.loads(path.read_bytes())
        except (OSError, ValueError):  # it was deleted just now
            continue
        yield record


def _read(directory: Path, name: str, kind: str) -> Record:
    try:
        if _ID.fullmatch(name):
            found: Record = orjson.loads((directory / f"{name}.json").read_bytes())
            return found
    except FileNotFoundError:
        pass
    raise ApiError(404, f"No such {kind}: {name[:80]!r}.", param=f"{kind}_id")


def _write(path: Path, record: Record) -> None:
    """Replace a file as a whole. Raises ApiError 500."""
    temporary = path.with_suffix(f".{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_bytes(orjson.dumps(record))
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ApiError(500, f"BATCH_DIR cannot be written: {error.strerror}.") from None
