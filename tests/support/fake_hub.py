"""The Hugging Face Hub as huggingface_hub meets it: repositories of files on a free port of this machine.

    with FakeHub() as hub:
        hub.add("org/name", {"config.json": b"{}", "model.safetensors": weights})
        subprocess.Popen([...], env={**os.environ, "HF_ENDPOINT": hub.url})

`hub.requests` has what was asked for. Faults are set on the object: `refuse` (a status for everything), `cut` (the
connection breaks that many bytes into the next large answers), `tokens` (those that are valid), `gated` repositories.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import threading
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


@dataclass
class Repository:
    """The files of one commit, which the branch `main` points to."""

    files: dict[str, bytes]
    commit: str
    refs: dict[str, str] = field(default_factory=dict)  # branch or tag -> commit


class FakeHub:
    """Served from a thread of its own."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.gated: set[str] = set()
        self.private: set[str] = set()
        self.tokens: set[str] = {"hf_valid"}
        self.refuse = 0
        self.cut: list[int] = []
        self.piece = 1 << 16  # bytes sent at a time
        self.delay = 0.0  # between two pieces
        self.requests: list[tuple[str, str]] = []  # method, path
        self.ranges: list[int] = []  # first bytes of ranges that were asked for
        self.sent = 0  # bytes of content
        self.together = 0  # weight files that must be asked for at the same time before one of them is sent
        self.port = 0
        self._asked = 0
        self._started = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="fake-hub", daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> FakeHub:
        self._thread.start()
        assert self._started.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def add(self, name: str, files: dict[str, bytes], commit: str = "c" * 40, **refs: str) -> Repository:
        self.repositories[name] = Repository(files, commit, {"main": commit, **refs})
        return self.repositories[name]

    def fetched(self) -> set[str]:
        """Names of the files whose content was sent."""
        return {path.rpartition("/resolve/")[2].partition("/")[2] for method, path in self.requests if method == "GET"}

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._main())
        self._loop.close()

    async def _main(self) -> None:
        self._stop = asyncio.Event()
        app = web.Application()
        app.router.add_get("/api/models/{name:.+?}/revision/{revision:.+}", self._info)
        app.router.add_get("/api/models/{name:.+}", self._info)
        app.router.add_get("/{name:.+?}/resolve/{revision}/{file:.+}", self._file)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.port = runner.addresses[0][1]
        self._started.set()
        await self._stop.wait()
        await runner.cleanup()

    def _check(self, request: web.Request, for_content: bool) -> Repository:
        """The repository asked for. Raises the refusal that the Hub would answer."""
        name = request.match_info["name"]
        if self.refuse:
            raise _Refusal(self.refuse, "", "the Hub is not well")
        given = request.headers.get("authorization", "")
        is_known = given.removeprefix("Bearer ") in self.tokens
        if given and not is_known:
            raise _Refusal(401, "", "Invalid credentials in Authorization header")
        repository = self.repositories.get(name)
        if repository is None or (name in self.private and not is_known):
            raise _Refusal(404 if given else 401, "RepoNotFound", "Repository not found")
        if request.match_info.get("revision", "main") not in {*repository.refs, repository.commit}:
            raise _Refusal(404, "RevisionNotFound", "Invalid rev id")
        if for_content and name in self.gated:
            raise _Refusal(403 if given else 401, "GatedRepo", "Access to this model is restricted")
        return repository

    async def _info(self, request: web.Request) -> web.Response:
        self.requests.append(("INFO", request.path))
        try:
            repository = self._check(request, for_content=False)
        except _Refusal as refusal:
            return refusal.answer()
        siblings = [{"rfilename": name, "size": len(data)} for name, data in repository.files.items()]
        body: dict[str, Any] = {"id": request.match_info["name"], "sha": repository.commit, "siblings": siblings}
        return web.json_response(body)

    async def _file(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request.method, request.path))
        try:
            repository = self._check(request, for_content=True)
        except _Refusal as refusal:
            return refusal.answer()
        content = repository.files.get(request.match_info["file"])
        if content is None:
            return _Refusal(404, "EntryNotFound", "Entry not found").answer()
        headers = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": repository.commit,
            "Accept-Ranges": "bytes",
        }
        start, stop = 0, len(content)
        if found := _RANGE.match(request.headers.get("range", "")):
            start = int(found[1])
            self.ranges.append(start)
            stop = min(stop, int(found[2] or stop) + 1)
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
        response = web.StreamResponse(status=206 if found else 200, headers=headers)
        response.content_length = stop - start
        if request.method == "HEAD":
            await response.prepare(request)
            return response
        end = start + self.cut.pop(0) if self.cut and len(content) > self.piece else stop
        if request.path.endswith(".safetensors"):
            self._asked += 1
            while self._asked < self.together:
                await asyncio.sleep(0.01)
        await response.prepare(request)
        for position in range(start, min(end, stop), self.piece):
            await response.write(content[position : min(position + self.piece, end, stop)])
            await asyncio.sleep(self.delay)
        self.sent += min(end, stop) - start
        if end < stop and request.transport is not None:
            request.transport.close()
        return response


class _Refusal(Exception):
    """An error in the Hub's form: what it is stands in headers."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message

    def answer(self) -> web.Response:
        headers = {"X-Error-Message": self.message, **({"X-Error-Code": self.code} if self.code else {})}
        return web.json_response({"error": self.message}, status=self.status, headers=headers)
