"""What to do when the code of a model fails in a step: find the sequences at fault, so that the others go on.

Only models that transformers computes are treated so. Their code is not Ember's, and may fail for one prompt. A step of
theirs can be computed again, since they have no state beside the cache. A device that reports an error is lost for
every sequence, so its errors are not treated here.
"""

from __future__ import annotations

import logging

from ember.engine.core.runner import Launched, StepRunner
from ember.engine.core.scheduler import Scheduled
from ember.engine.core.sequence import Sequence
from ember.engine.errors import described

log = logging.getLogger(__name__)


def can_isolate(runner: StepRunner, error: Exception) -> bool:
    """Whether the sequences of a step that failed with this error can be computed one by one."""
    return runner.model.config.through_transformers and not runner.runs_ahead and "CUDA error" not in str(error)


def compute_alone(
    runner: StepRunner, step: list[Scheduled], error: Exception
) -> tuple[list[tuple[Scheduled, Launched]], list[tuple[Sequence, str]]]:
    """Compute each sequence of a step that failed by itself. Returns what was computed, and the sequences that failed
    again, with the message for their requests. Raises errors that `can_isolate` refuses."""
    computed: list[tuple[Scheduled, Launched]] = []
    failed: list[tuple[Sequence, str]] = []
    for scheduled in step:
        if len(step) > 1:
            try:
                computed.append((scheduled, runner.launch([scheduled])))
                continue
            except Exception as own:
                if not can_isolate(runner, own):
                    raise
                error = own
        failed.append((scheduled.sequence, f"the model's code failed: {described(error)}"))
    if failed:
        log.error("the model's code failed for %d of %d sequences: %s", len(failed), len(step), described(error))
    else:
        log.error(
            "the model's code failed in a step of %d sequences, and for none of them alone, so all go on: %s",
            len(step),
            described(error),
        )
    return computed, failed
