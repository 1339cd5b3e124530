"""Runs the batches of a deployment beside its other requests, from their creation, or from the boot on, to their
end."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import ExitStack, closing
from functools import partial
from typing import TYPE_CHECKING

from ember.front.api.batches import local
from ember.front.api.batches.lines import Checked, check_file
from ember.front.api.batches.results import Answer, ResultFile, ResultsError
from ember.front.api.batches.run import BatchRun, GaveUp
from ember.front.api.batches.store import FINAL, Record, Store
from ember.front.errors import ApiError

if TYPE_CHECKING:
    from ember.front.api.services import Services

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.25  # between two looks at whether a batch is to be cancelled
MAX_BATCHES = 2  # that run at a time; others wait
_EXPIRED = {
    "code": "batch_expired",
    "message": "This request could not be executed before the completion window expired.",
}


class Batches:
    """The batches of one deployment. They take half of the engine's sequences, so that other requests find room."""

    def __init__(self, services: Services) -> None:
        assert services.settings.batch_dir is not None, "the routes are off without BATCH_DIR"
        self.store = Store(services.settings.batch_dir)
        self._services = services
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._places = asyncio.Semaphore(MAX_BATCHES)

    def resume(self) -> None:
        """Go on with the batches that are not over."""
        for batch in sorted(self.store.all_batches(), key=lambda batch: batch["_made"]):
            if batch["status"] not in FINAL:
                self.start(batch)

    def start(self, batch: Record) -> None:
        task = asyncio.create_task(self._run_logged(batch))
        self._tasks[batch["id"]] = task
        task.add_done_callback(lambda _: self._tasks.pop(batch["id"], None))

    async def close(self) -> None:
        """Stop. What is not over goes on at the next boot."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run_logged(self, batch: Record) -> None:
        try:
            async with self._places:
                await self._run(batch)
        except (GaveUp, ResultsError, ApiError, OSError) as error:  # or another server runs it
            log.warning("%s stopped and goes on at the next start: %s", batch["id"], error)

    async def _run(self, batch: Record) -> None:
        """Run a batch to its end. Raises ResultsError, also where another server runs it."""
        checked = await asyncio.to_thread(check_file, self.store.content(batch["input_file_id"]), batch["endpoint"])
        if checked.num_faults:
            batch["errors"] = {"object": "list", "data": [fault.body() for fault in checked.faults]}
            self._become(batch, "failed", "failed_at")
            return
        with ExitStack() as stack:
            output, errors = (
                stack.enter_context(closing(ResultFile(self.store.content(batch[name]))))
                for name in ("_output", "_errors")
            )
            run = BatchRun(self.store.content(batch["input_file_id"]), checked, output, errors)
            if batch["status"] == "validating":
                self._become(batch, "in_progress", "in_progress_at")
            ending = await self._work(batch, run, checked)
            if ending == "expired":
                for line in run.waiting():
                    run.add(line, Answer(0, "", None, _EXPIRED))
            self._become(batch, "finalizing", "finalizing_at")
        self._count(batch, run)
        for name, shown, suffix in (("_output", "output_file_id", "output"), ("_errors", "error_file_id", "error")):
            if self.store.content(batch[name]).stat().st_size:
                self.store.add_file(batch[name], f"{batch['id']}_{suffix}.jsonl", "batch_output")
                batch[shown] = batch[name]
            else:
                self.store.content(batch[name]).unlink()
        self._become(batch, ending, f"{ending}_at")
        self.store.forget_wish(batch["id"])

    async def _work(self, batch: Record, run: BatchRun, checked: Checked) -> str:
        """Run until the batch is done, is cancelled, or its time is over. Returns the status at its end."""
        info = await self._services.ready()  # the engine may be being restarted
        window = max(1, info.max_num_seqs // 2)
        work = asyncio.create_task(run.run(partial(local.ask, self._services), window))
        shown: tuple[int, int] | None = None
        try:
            while True:
                if (counts := (run.counts.completed, run.counts.failed)) != shown:
                    shown = counts
                    self._count(batch, run)
                    self.store.put_batch(batch)
                if self.store.is_to_be_cancelled(batch["id"]):
                    return "cancelled"
                if time.time() > batch["expires_at"] and not work.done():
                    return "expired"
                if work.done():
                    await work
                    return "completed"
                await asyncio.wait((work,), timeout=LOOK_SECONDS)
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    def _count(self, batch: Record, run: BatchRun) -> None:
        counts = run.counts
        batch["request_counts"] = {"total": counts.total, "completed": counts.completed, "failed": counts.failed}

    def _become(self, batch: Record, status: str, time_name: str) -> None:
        batch["status"] = status
        batch[time_name] = int(time.time())
        self.store.put_batch(batch)


def batches_of(services: Services) -> Batches:
    found: Batches | None = services.kept.get("batches")
    if found is None:
        found = services.kept["batches"] = Batches(services)
    return found
