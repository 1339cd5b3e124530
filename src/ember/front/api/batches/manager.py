"""Runs the batches of a deployment beside its other requests, from their creation, or from the server's start on, to
their end."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Iterator
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from ember.front.api.batches import local
from ember.front.api.batches.lines import MAX_REQUESTS, BatchLine, Checked, Fault, check_file
from ember.front.api.batches.results import Answer, ResultFile, ResultsError
from ember.front.api.batches.run import CHUNK_LINES, BatchRun, GaveUp, finished_in_thread
from ember.front.api.batches.store import FINAL, Record, Store
from ember.front.errors import ApiError

if TYPE_CHECKING:
    from ember.front.api.services import Services

log = logging.getLogger(__name__)

POLL_SECONDS = 0.25  # between two checks of whether a batch is cancelled or expired
MAX_BATCHES = 2  # that run at a time; others wait
RETRY_SECONDS, MAX_RETRY_SECONDS = 1.0, 30.0  # until a batch that stopped for an error is tried again
_EXPIRED = {
    "code": "batch_expired",
    "message": "This request could not be executed before the completion window expired.",
}
_RESULTS = (("_output", "output_file_id", "output"), ("_errors", "error_file_id", "error"))


class Batches:
    """The batches of one deployment. They take half of the engine's sequences, so that other requests find room."""

    def __init__(self, services: Services) -> None:
        assert services.settings.batch_dir is not None, "the routes are off without BATCH_DIR"
        self.store = Store(services.settings.batch_dir)
        self._services = services
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._checked: dict[str, Checked] = {}  # of each batch in `_tasks` whose input was read
        self._places = asyncio.Semaphore(MAX_BATCHES)
        services.closers.append(self.close)

    async def resume(self) -> None:
        """Continue the batches that are not over, and remove what uploads that broke off have left. A batch whose
        requests all name models that this server does not serve stays as it is."""
        try:
            await asyncio.to_thread(self.store.remove_orphans)
        except OSError as error:
            log.warning("BATCH_DIR cannot be cleaned: %s", error)
        batches = await asyncio.to_thread(self.store.all_batches)
        for batch in sorted(batches, key=lambda batch: batch["_made"]):
            if batch["status"] not in FINAL:
                self.start(batch, is_new=False)

    def start(self, batch: Record, is_new: bool = True) -> None:
        """Run a batch, unless this server does already."""
        batch_id = batch["id"]
        if batch_id not in self._tasks:
            task = asyncio.create_task(self._run_to_end(batch_id, is_new))
            self._tasks[batch_id] = task
            task.add_done_callback(lambda _: self._forget(batch_id))

    def _forget(self, batch_id: str) -> None:
        self._tasks.pop(batch_id, None)
        self._checked.pop(batch_id, None)

    async def close(self) -> None:
        """Stop all batches. Those that are not over continue when a server starts."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run_to_end(self, batch_id: str, is_new: bool) -> None:
        """Run a batch, and try again after an error, as for a full disk or a batch that another server runs."""
        delay = RETRY_SECONDS
        logged = None
        while True:
            try:
                await self._run_in_place(batch_id, is_new)
                return
            except GaveUp as error:  # the engine has failed for good
                log.warning("%s stopped and continues at the next start: %s", batch_id, error)
                return
            except (ResultsError, ApiError, OSError) as error:
                if isinstance(error, ApiError) and error.status == 404:
                    return  # the batch was removed from the directory
                if str(error) != logged:
                    log.warning("%s stopped and is tried again: %s", batch_id, error)
                logged = str(error)
            except Exception:
                log.exception("%s stopped unexpectedly and is tried again", batch_id)
            await asyncio.sleep(delay)
            delay = min(2 * delay, MAX_RETRY_SECONDS)

    async def _run_in_place(self, batch_id: str, is_new: bool) -> None:
        """Wait for one of the places, and run. A batch that is cancelled or expires before it has a place only ends."""
        batch = await asyncio.to_thread(self.store.batch, batch_id)
        if batch["status"] in FINAL:
            return
        place = asyncio.create_task(self._places.acquire())
        try:
            await self._wait(batch, place)
            await self._run(batch_id, is_new)
        finally:
            place.cancel()
            await asyncio.gather(place, return_exceptions=True)
            if not place.cancelled():
                self._places.release()

    async def _run(self, batch_id: str, is_new: bool) -> None:
        """Run a batch to its end. Raises ResultsError, also where another server runs it, and what `_work` raises."""
        batch = await asyncio.to_thread(self.store.batch, batch_id)
        if batch_id not in self._checked:  # a batch that another server runs is tried again until it is over
            self._checked[batch_id] = await finished_in_thread(self._check, batch)
        checked = self._checked[batch_id]
        is_served = not checked.models or any(map(self._services.settings.serves, checked.models))
        if not (is_served or is_new or self._asked_ending(batch)):
            log.info("%s is left to a server of its model: %s", batch_id, ", ".join(sorted(checked.models))[:200])
            return
        files: list[ResultFile] = []
        try:
            for name, _, _ in _RESULTS:
                files.append(await finished_in_thread(ResultFile, self.store.content(batch[name])))
            batch = await asyncio.to_thread(self.store.batch, batch_id)  # another server may have ended it meanwhile
            if batch["status"] not in FINAL:
                await self._run_locked(batch, checked, files)
            for file in files:  # only now, as the record says that the batch is over
                file.remove_empty()
        finally:
            for file in files:
                await finished_in_thread(file.close)

    def _check(self, batch: Record) -> Checked:
        try:
            return check_file(self.store.content(batch["input_file_id"]), batch["endpoint"], MAX_REQUESTS)
        except FileNotFoundError:
            return Checked(faults=[Fault(1, "missing_file", "The content of the input file is gone.")], num_faults=1)

    async def _run_locked(self, batch: Record, checked: Checked, files: list[ResultFile]) -> None:
        """Run a batch whose files are locked by this server until its record says that it is over."""
        if checked.num_faults:
            batch["errors"] = {"object": "list", "data": [fault.body() for fault in checked.faults]}
            self._become(batch, "failed", "failed_at")
            self.store.forget_cancellation(batch["id"])
            return
        run = await finished_in_thread(BatchRun, self.store.content(batch["input_file_id"]), checked, *files)
        if batch.get("_ending") is None:
            batch["_ending"] = await self._work(batch, run)
            self._become(batch, "finalizing", "finalizing_at")  # with the ending: a restart does not change it
        if batch["_ending"] == "expired":
            waiting = run.waiting()
            while await finished_in_thread(_expire, run, waiting):
                pass
        self._count(batch, run)
        for file in files:
            await finished_in_thread(file.flush)
        for name, shown, suffix in _RESULTS:
            if self.store.content(batch[name]).stat().st_size:
                self.store.add_file(batch[name], f"{batch['id']}_{suffix}.jsonl", "batch_output")
                batch[shown] = batch[name]
        self._become(batch, batch["_ending"], f"{batch['_ending']}_at")
        self.store.forget_cancellation(batch["id"])

    async def _work(self, batch: Record, run: BatchRun) -> str:
        """Run until each request has a result, or the batch is cancelled or expires. Returns its final status."""
        if run.counts.done == run.counts.total:
            return "completed"
        if ending := await self._wait(batch, self._services.ready()):  # the engine may be being restarted
            return ending
        if batch["status"] == "validating":
            self._become(batch, "in_progress", "in_progress_at")
        window = max(1, self._services.engine.info.max_num_seqs // 2)
        return await self._wait(batch, run.run(partial(local.ask, self._services), window), run) or "completed"

    async def _wait(self, batch: Record, awaited: Awaitable[object], run: BatchRun | None = None) -> str | None:
        """Wait for something, while the counts of a run are written to the batch's record. Returns None, or how the
        batch ends where it is cancelled or expires before."""
        task = asyncio.ensure_future(awaited)
        written = None
        try:
            while True:
                if run is not None and (counts := (run.counts.completed, run.counts.failed)) != written:
                    written = counts
                    self._count(batch, run)
                    self.store.put_batch(batch)
                if task.done():
                    await task
                    return None
                if ending := self._asked_ending(batch):
                    return ending
                await asyncio.wait((task,), timeout=POLL_SECONDS)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def _asked_ending(self, batch: Record) -> str | None:
        """How a batch ends that has still requests to run, or None if it goes on."""
        if self.store.is_to_be_cancelled(batch["id"]):
            return "cancelled"
        return "expired" if time.time() > batch["expires_at"] else None

    def _count(self, batch: Record, run: BatchRun) -> None:
        counts = run.counts
        batch["request_counts"] = {"total": counts.total, "completed": counts.completed, "failed": counts.failed}

    def _become(self, batch: Record, status: str, time_name: str) -> None:
        batch["status"] = status
        batch[time_name] = int(time.time())
        self.store.put_batch(batch)


def _expire(run: BatchRun, waiting: Iterator[BatchLine]) -> bool:
    """Give some of the requests without a result an error as theirs. Returns whether there may be more of them."""
    lines = list(islice(waiting, CHUNK_LINES))
    for line in lines:
        run.add(line, Answer(0, "", None, _EXPIRED))
    return bool(lines)


def batches_of(services: Services) -> Batches:
    """The batches of this deployment, which are made at the first call."""
    found: Batches | None = services.kept.get("batches")
    if found is None:
        found = services.kept["batches"] = Batches(services)
    return found
