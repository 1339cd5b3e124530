"""Stored responses, which later requests continue (`previous_response_id`), refer to, read and delete.

RESPONSES_STORE says where they are: in memory or in an SQLite file. Both have limits of size and age; the oldest go
first.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import orjson

from ember.front.api.exchange import Request
from ember.front.api.services import Services
from ember.front.errors import ApiError

Item = dict[str, Any]
SQLITE = "sqlite:"
UNFINISHED = ("queued", "in_progress")
Command = Literal["cancel", "delete"]
HEARTBEAT_TIMEOUT = 20.0  # seconds after which a response without a heartbeat of its worker has failed
_WORKER_ENDED = {"code": "server_error", "message": "The worker that made this response has ended."}


@dataclass(frozen=True, slots=True)
class Stored:
    """One stored response. `items` are those of its own input; earlier ones belong to `previous_id`."""

    body: dict[str, Any]
    items: list[Item]

    @property
    def id(self) -> str:
        name: str = self.body["id"]
        return name

    @property
    def previous_id(self) -> str | None:
        name: str | None = self.body["previous_response_id"]
        return name

    @property
    def all_items(self) -> list[Item]:
        """The input's items and those of the output."""
        return [*self.items, *self.body["output"]]


class Store(Protocol):
    """A store. Its methods raise ApiError 500 where it cannot be read or written."""

    @property
    def num_bytes(self) -> int:
        """What it holds in memory."""
        ...

    async def put(self, stored: Stored) -> None: ...
    async def get(self, response_id: str) -> Stored | None: ...
    async def delete(self, response_id: str) -> bool: ...
    async def item(self, item_id: str) -> Item | None: ...

    async def heartbeat(self, response_ids: Sequence[str]) -> dict[str, Command]:
        """Record that this worker is making these responses. Returns what clients asked other workers to do with
        them."""
        ...

    async def send_command(self, response_id: str, command: Command) -> bool:
        """Leave a command for the worker that is making the response. Returns whether there is one."""
        ...


class MemoryStore:
    """Responses in memory. A response that is read counts as new for the limit of size. One that is larger than the
    limit is not kept, and drives out no other."""

    def __init__(self, max_bytes: int, max_seconds: float) -> None:
        self._max_bytes = max_bytes
        self._max_seconds = max_seconds
        self._entries: OrderedDict[str, tuple[Stored, int, float]] = OrderedDict()
        self._places: dict[str, str] = {}  # from an item's id to that of its response
        self.num_bytes = 0

    async def put(self, stored: Stored) -> None:
        await self.delete(stored.id)
        size = len(orjson.dumps([stored.body, stored.items]))
        if size > self._max_bytes:
            return
        self._entries[stored.id] = (stored, size, time.monotonic() + self._max_seconds)
        self._places |= {item["id"]: stored.id for item in stored.all_items if isinstance(item.get("id"), str)}
        self.num_bytes += size
        while self._entries and self.num_bytes > self._max_bytes:
            await self.delete(next(iter(self._entries)))

    async def get(self, response_id: str) -> Stored | None:
        entry = self._entries.get(response_id)
        if entry is None:
            return None
        if entry[2] < time.monotonic():
            await self.delete(response_id)
            return None
        self._entries.move_to_end(response_id)
        return entry[0]

    async def delete(self, response_id: str) -> bool:
        entry = self._entries.pop(response_id, None)
        if entry is None:
            return False
        self.num_bytes -= entry[1]
        for item in entry[0].all_items:
            if self._places.get(item.get("id", "")) == response_id:
                del self._places[item["id"]]
        return True

    async def item(self, item_id: str) -> Item | None:
        return _find(await self.get(self._places.get(item_id, "")), item_id)

    async def heartbeat(self, response_ids: Sequence[str]) -> dict[str, Command]:
        return {}

    async def send_command(self, response_id: str, command: Command) -> bool:
        return False


_SCHEMA = (
    "PRAGMA journal_mode=WAL",
    "PRAGMA foreign_keys=ON",
    "CREATE TABLE IF NOT EXISTS responses "
    "(id TEXT PRIMARY KEY, stored REAL NOT NULL, size INTEGER NOT NULL, body BLOB NOT NULL, items BLOB NOT NULL)",
    "CREATE TABLE IF NOT EXISTS items "
    "(id TEXT NOT NULL, response TEXT NOT NULL REFERENCES responses(id) ON DELETE CASCADE)",
    "CREATE INDEX IF NOT EXISTS items_by_id ON items(id)",
    "CREATE INDEX IF NOT EXISTS items_by_response ON items(response)",
    "CREATE TABLE IF NOT EXISTS running (id TEXT PRIMARY KEY, seen REAL NOT NULL, command TEXT)",
)


class SqliteStore:
    """Responses in a file, which several workers may share and which outlives them.

    The table `running` has the responses that a worker is making in the background: the time of its last heartbeat, and
    a command that another worker has left for it. A response whose heartbeats have stopped has failed.
    """

    num_bytes = 0

    def __init__(self, path: str, max_bytes: int, max_seconds: float) -> None:
        self._max_bytes = max_bytes
        self._max_seconds = max_seconds
        self._lock = threading.Lock()
        self._path = path
        self._connection: sqlite3.Connection | None = None

    async def put(self, stored: Stored) -> None:
        await self._run(self._put, stored)

    async def get(self, response_id: str) -> Stored | None:
        found: Stored | None = await self._run(self._get, response_id)
        return found

    async def delete(self, response_id: str) -> bool:
        found: bool = await self._run(self._delete, response_id)
        return found

    async def item(self, item_id: str) -> Item | None:
        found: Stored | None = await self._run(self._of_item, item_id)
        return _find(found, item_id)

    async def heartbeat(self, response_ids: Sequence[str]) -> dict[str, Command]:
        found: dict[str, Command] = await self._run(self._heartbeat, response_ids)
        return found

    async def send_command(self, response_id: str, command: Command) -> bool:
        found: bool = await self._run(self._send_command, response_id, command)
        return found

    async def _run(self, work: Any, *arguments: Any) -> Any:
        return await asyncio.to_thread(self._locked, work, *arguments)

    def _locked(self, work: Any, *arguments: Any) -> Any:
        with self._lock:
            try:
                with self._open() as connection:
                    return work(connection, *arguments)
            except (sqlite3.Error, OSError) as error:
                raise ApiError(500, f"RESPONSES_STORE={SQLITE}{self._path} cannot be used: {error}") from None

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            connection = sqlite3.connect(self._path, timeout=10, check_same_thread=False)
            try:
                for statement in _SCHEMA:
                    connection.execute(statement)
            except sqlite3.Error:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _put(self, connection: sqlite3.Connection, stored: Stored) -> None:
        self._delete(connection, stored.id)
        body, items = orjson.dumps(stored.body), orjson.dumps(stored.items)
        now = time.time()
        size = len(body) + len(items)
        if size > self._max_bytes:
            return
        row = (stored.id, now, size, body, items)
        connection.execute("INSERT INTO responses VALUES (?, ?, ?, ?, ?)", row)
        ids = [(item["id"], stored.id) for item in stored.all_items if isinstance(item.get("id"), str)]
        connection.executemany("INSERT INTO items VALUES (?, ?)", ids)
        connection.execute("DELETE FROM responses WHERE stored < ?", (now - self._max_seconds,))
        (size,) = connection.execute("SELECT coalesce(sum(size), 0) FROM responses").fetchone()
        while size > self._max_bytes:
            oldest, its_size = connection.execute("SELECT id, size FROM responses ORDER BY stored LIMIT 1").fetchone()
            self._delete(connection, oldest)
            size -= its_size

    def _get(self, connection: sqlite3.Connection, response_id: str) -> Stored | None:
        since = time.time() - self._max_seconds
        query = "SELECT body, items FROM responses WHERE id = ? AND stored >= ?"
        row = connection.execute(query, (response_id, since)).fetchone()
        if row is None:
            return None
        body = orjson.loads(row[0])
        if body.get("status") in UNFINISHED and not self._is_alive(connection, response_id):
            body |= {"status": "failed", "error": _WORKER_ENDED}
        return Stored(body, orjson.loads(row[1]))

    def _is_alive(self, connection: sqlite3.Connection, response_id: str) -> bool:
        query = "SELECT 1 FROM running WHERE id = ? AND seen >= ?"
        return connection.execute(query, (response_id, time.time() - HEARTBEAT_TIMEOUT)).fetchone() is not None

    def _delete(self, connection: sqlite3.Connection, response_id: str) -> bool:
        return connection.execute("DELETE FROM responses WHERE id = ?", (response_id,)).rowcount > 0

    def _heartbeat(self, connection: sqlite3.Connection, response_ids: Iterable[str]) -> dict[str, str]:
        now = time.time()
        query = (
            "INSERT INTO running VALUES (?, ?, NULL) ON CONFLICT(id) DO UPDATE SET seen = excluded.seen "
            "RETURNING command"
        )
        found = {name: connection.execute(query, (name, now)).fetchone()[0] for name in response_ids}
        connection.execute("DELETE FROM running WHERE seen < ?", (now - HEARTBEAT_TIMEOUT,))
        return {name: command for name, command in found.items() if command is not None}

    def _send_command(self, connection: sqlite3.Connection, response_id: str, command: Command) -> bool:
        if not self._is_alive(connection, response_id):
            return False
        connection.execute("UPDATE running SET command = ? WHERE id = ?", (command, response_id))
        return True

    def _of_item(self, connection: sqlite3.Connection, item_id: str) -> Stored | None:
        row = connection.execute("SELECT response FROM items WHERE id = ? LIMIT 1", (item_id,)).fetchone()
        return None if row is None else self._get(connection, row[0])


def _find(stored: Stored | None, item_id: str) -> Item | None:
    items: Sequence[Item] = () if stored is None else stored.all_items
    return next((item for item in items if item.get("id") == item_id), None)


def store_of(services: Services, raw_request: Request) -> Store | None:
    """The store of the deployment, if it keeps responses. `auto` keeps those of HTTP requests in memory, and none of
    queue jobs, the next of which may come to another worker."""
    where = services.settings.responses_store
    if where == "off" or (where == "auto" and raw_request.is_job):
        return None
    kept = services.kept.get("responses")
    if kept is None:
        limits = (services.settings.responses_store_bytes, services.settings.responses_store_seconds)
        kept = SqliteStore(where.removeprefix(SQLITE), *limits) if where.startswith(SQLITE) else MemoryStore(*limits)
        services.kept["responses"] = kept
    store: Store = kept
    return store
