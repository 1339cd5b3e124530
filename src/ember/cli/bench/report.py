"""What a load test gave, as figures: a table, a document and a picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any
from xml.sax.saxutils import escape

from ember.cli.bench.load import Outcome, Run

PERCENTILES = (50.0, 90.0, 95.0, 99.0)
LATENCIES: dict[str, tuple[str, Callable[[Outcome], Sequence[float]]]] = {  # name -> title, seconds of one request
    "ttft": ("time to first token", lambda outcome: [] if outcome.ttft is None else [outcome.ttft]),
    "itl": ("time between tokens", lambda outcome: outcome.gaps),
    "tpot": ("time per output token", lambda outcome: [] if outcome.tpot is None else [outcome.tpot]),
    "e2e": ("whole answer", lambda outcome: [outcome.e2e]),
}
BUSY_CLIENT = 0.8  # of one core: above it the client may be what is measured
_SHOWN_ERRORS = 5


def percentile(values: Sequence[float], percent: float) -> float:
    """The value below which `percent` of the values lie, between its two neighbours. `values`: sorted, not empty."""
    position = (len(values) - 1) * percent / 100
    low = math.floor(position)
    high = min(low + 1, len(values) - 1)
    return values[low] + (values[high] - values[low]) * (position - low)


def summary(run: Run, goals: dict[str, float], percentiles: Sequence[float] = PERCENTILES) -> dict[str, Any]:
    """All figures of a run. Times are in milliseconds but for `duration_s`; rates are per second of the whole run."""
    good = [outcome for outcome in run.outcomes if outcome.error is None]
    is_known = all(outcome.num_input is not None for outcome in good)
    num_input = sum(outcome.num_input or 0 for outcome in good)
    num_output = sum(outcome.num_output or 0 for outcome in good)
    seconds = run.seconds or math.inf
    found: dict[str, Any] = {
        "requests": len(run.outcomes),
        "failed": len(run.outcomes) - len(good),
        "duration_s": run.seconds,
        "input_tokens": num_input if is_known else None,
        "cached_tokens": sum(outcome.num_cached for outcome in good),
        "output_tokens": num_output,
        "output_is_counted": all(outcome.is_counted for outcome in good),
        "requests_per_s": len(good) / seconds,
        "output_tokens_per_s": num_output / seconds,
        "total_tokens_per_s": (num_input + num_output) / seconds if is_known else None,
        "peak_concurrency": run.peak_concurrency,
        "client_cpu": run.client_cpu_seconds / seconds,
    }
    for name, (_, seconds_of) in LATENCIES.items():
        values = sorted(1e3 * value for outcome in good for value in seconds_of(outcome))
        if values:
            shown = {f"p{percent:g}": percentile(values, percent) for percent in percentiles}
            found[f"{name}_ms"] = {"mean": sum(values) / len(values), **shown, "max": values[-1]}
    if goals:
        found["goodput_per_s"] = sum(_meets(outcome, goals) for outcome in good) / seconds
        found["goals_ms"] = goals
    errors: dict[str, int] = {}
    for outcome in run.outcomes:
        if outcome.error is not None:
            errors[outcome.error] = errors.get(outcome.error, 0) + 1
    found["errors"] = dict(sorted(errors.items(), key=lambda item: -item[1])[:_SHOWN_ERRORS])
    return found


def rows(run: Run) -> list[dict[str, Any]]:
    """Each request by itself, for the JSON file. Times are in seconds since the start of the run."""
    return [
        {
            "start": outcome.start,
            "ttft": outcome.ttft,
            "end": outcome.end,
            "gaps": outcome.gaps,
            "input_tokens": outcome.num_input,
            "cached_tokens": outcome.num_cached,
            "output_tokens": outcome.num_output,
            "error": outcome.error,
        }
        for outcome in run.outcomes
    ]


def as_text(found: dict[str, Any], title: str) -> str:
    """The figures as a table for a terminal."""
    lines = [title, ""]
    kind = "tokens" if found["output_is_counted"] else "chunks (the server's streams have no usage)"
    counts = [
        ("requests", f"{found['requests']:,} ({found['failed']:,} failed)"),
        ("duration", f"{found['duration_s']:.2f} s, at most {found['peak_concurrency']:,} at a time"),
        ("requests", f"{found['requests_per_s']:.2f} a second"),
        ("output", f"{found['output_tokens']:,} {kind}, {found['output_tokens_per_s']:,.1f} a second"),
    ]
    if found["input_tokens"] is None:
        counts.insert(3, ("input", "unknown: the server's streams have no usage"))
    else:
        counts.insert(3, ("input", f"{found['input_tokens']:,} tokens, {found['cached_tokens']:,} of them cached"))
        counts.append(("input and output", f"{found['total_tokens_per_s']:,.1f} tokens a second"))
    if "goodput_per_s" in found:
        goals = ", ".join(f"{name} <= {value:g} ms" for name, value in found["goals_ms"].items())
        counts.append(("goodput", f"{found['goodput_per_s']:.2f} requests a second with {goals}"))
    counts.append(("this client", f"{100 * found['client_cpu']:.0f} % of a core"))
    lines += [f"{name:<18}{value}" for name, value in counts]
    names = [name for name in LATENCIES if f"{name}_ms" in found]
    if names:
        columns = list(found[f"{names[0]}_ms"])
        lines += ["", f"{'ms':<28}" + "".join(f"{column:>11}" for column in columns)]
        for name in names:
            figures = "".join(f"{found[f'{name}_ms'][column]:>11,.2f}" for column in columns)
            lines.append(f"{LATENCIES[name][0] + f' ({name})':<28}{figures}")
    for message, count in found["errors"].items():
        lines.append(f"{count:,} failed: {message}")
    if found["client_cpu"] > BUSY_CLIENT:
        lines.append("the client was busy: it may have held the server back, so run several of them")
    return "\n".join(lines)


def _meets(outcome: Outcome, goals: dict[str, float]) -> bool:
    return all(
        1e3 * value <= goals[name]
        for name, (_, seconds_of) in LATENCIES.items()
        if name in goals
        for value in seconds_of(outcome)
    )


_WIDTH, _HEIGHT, _MARGIN, _GAP = 300, 200, 50, 40
_POINTS = 200


def as_svg(run: Run, title: str) -> str:
    """The share of requests (of gaps, for times between tokens) within each time, one panel for each latency."""
    good = [outcome for outcome in run.outcomes if outcome.error is None]
    panels = []
    for name, (label, seconds_of) in LATENCIES.items():
        values = sorted(1e3 * value for outcome in good for value in seconds_of(outcome))
        if values and name != "tpot":
            panels.append((f"{label} ({name})", values))
    width = _MARGIN + len(panels) * (_WIDTH + _GAP) + 20
    height = _HEIGHT + 110
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{_MARGIN}" y="22" font-size="14">{escape(title)}</text>',
    ]
    for i, (label, values) in enumerate(panels):
        parts += _panel(_MARGIN + i * (_WIDTH + _GAP), 60, label, values)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(left: int, top: int, label: str, values: Sequence[float]) -> list[str]:
    most = values[-1] or 1.0
    points = []
    for step in range(_POINTS + 1):
        at = left + _WIDTH * percentile(values, 100 * step / _POINTS) / most
        points.append(f"{at:.1f},{top + _HEIGHT * (1 - step / _POINTS):.1f}")
    bottom = top + _HEIGHT
    parts = [f'<text x="{left}" y="{top - 10}">{escape(label)}</text>']
    for percent in (0, 50, 90, 100):
        y = bottom - _HEIGHT * percent / 100
        parts.append(f'<line x1="{left}" y1="{y:.1f}" x2="{left + _WIDTH}" y2="{y:.1f}" stroke="#dddddd"/>')
        if left == _MARGIN:
            parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{percent} %</text>')
    parts.append(f'<polyline points="{" ".join(points)}" fill="none" stroke="#1f77b4" stroke-width="2"/>')
    for share, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        x = left + _WIDTH * share
        parts.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="{anchor}">{most * share:,.4g} ms</text>')
    return parts
