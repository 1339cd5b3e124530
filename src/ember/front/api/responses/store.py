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
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from ember.front.api.exchange import Request
from ember.front.api.services import Services
from ember.front.errors import ApiError

Item = dict[str, Any]
SQLITE = "sqlite:"


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

    async def put(self, stored: Stored) -> None: ...
    async def get(self, response_id: str) -> Stored | None: ...
    async def delete(self, response_id: str) -> bool: ...
    async def item(self, item_id: str) -> Item | None: ...


class MemoryStore:
    """Responses in memory. A response that is read counts as new for the limit of size."""

    def __init__(self, max_bytes: int, max_seconds: float) -> None:
        self._max_bytes = max_bytes
        self._max_seconds = max_seconds
        self._entries: OrderedDict[str, tuple[Stored, int, float]] = OrderedDict()
        self._places: dict[str, str] = {}  # from an item's id to that of its response
        self.num_bytes = 0

    async def put(self, stored: Stored) -> None:
        await self.delete(stored.id)
        size = len(orjson.dumps([stored.body, stored.items]))
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


class SqliteStore:
    """Responses in a file, which several workers may share and which outlives them."""

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
            self._connection = sqlite3.connect(self._path, timeout=10, check_same_thread=False)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA foreign_keys=ON")
            self._connection.execute(
                "CREATE TABLE IF NOT EXISTS responses "
                "(id TEXT PRIMARY KEY, stored REAL NOT NULL, size INTEGER NOT NULL, "
                "body BLOB NOT NULL, items BLOB NOT NULL)"
            )
            self._connection.execute(
                "CREATE TABLE IF NOT EXISTS items "
                "(id TEXT NOT NULL, response TEXT NOT NULL REFERENCES responses(id) ON DELETE CASCADE)"
            )
            self._connection.execute("CREATE INDEX IF NOT EXISTS items_by_id ON items(id)")
            self._connection.execute("CREATE INDEX IF NOT EXISTS items_by_response ON items(response)")
        return self._connection

    def _put(self, connection: sqlite3.Connection, stored: Stored) -> None:
        self._delete(connection, stored.id)
        body, items = orjson.dumps(stored.body), orjson.dumps(stored.items)
        now = time.time()
        row = (stored.id, now, len(body) + len(items), body, items)
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
        return None if row is None else Stored(orjson.loads(row[0]), orjson.loads(row[1]))

    def _delete(self, connection: sqlite3.Connection, response_id: str) -> bool:
        return connection.execute("DELETE FROM responses WHERE id = ?", (response_id,)).rowcount > 0

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
