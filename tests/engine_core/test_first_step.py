"""The first step in the boot timeline, and the warning about kernels that were compiled."""

from __future__ import annotations

from ember.boot import Timeline, now
from ember.engine.core.first_step import STEPS, FirstStep
from ember.wire import Notice, Phases
from ember_kernels.cache import CacheWatch


def test_without_kernels_it_is_over_after_one_step():
    sent: list[Phases | Notice] = []
    timeline = Timeline("engine")
    with timeline.phase("load"):
        pass
    assert FirstStep(timeline, sent.append, None).ended(now())
    (message,) = sent
    assert isinstance(message, Phases)
    assert [(phase["name"], phase["process"], phase["detail"]) for phase in message.phases] == [
        ("first_step", "engine", {})
    ]


def test_compiled_kernels_are_counted_and_named_once():
    sent: list[Phases | Notice] = []
    kernels = CacheWatch()
    kernels.found = 5
    first = FirstStep(Timeline("engine"), sent.append, kernels)
    assert not first.ended(now())
    assert isinstance(sent[0], Phases)
    assert sent[0].phases[0]["detail"] == {"kernels_found": 5, "kernels_compiled": 0}
    kernels.compiled, kernels.seconds = ["norm", "attention", "norm"], 2.5
    assert not first.ended(now())
    assert not first.ended(now())
    (notice,) = sent[1:]
    assert isinstance(notice, Notice) and notice.level == "warning"
    assert "3 kernels" in notice.message and "2.5 s" in notice.message and "attention, norm" in notice.message
    ended = [first.ended(now()) for _ in range(STEPS)]
    assert True in ended and len(sent) == 2
