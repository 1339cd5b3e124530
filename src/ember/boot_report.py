"""Draw a boot timeline as text for a terminal or as an SVG image: `ember boot-report FILE [--svg OUT]`.

The input is the file that EMBER_BOOT_REPORT wrote, or the response of `GET /boot` if FILE is a server's URL.
"""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

_COLOURS = {"front": "#4c78a8", "engine": "#f58518"}
_BAR = 60  # characters
_WIDTH, _ROW, _LEFT = 760, 22, 210  # pixels


_FETCH_SECONDS = 10.0


class ReportError(Exception):
    """The report cannot be read. The message is one line."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any) -> None:
        """Follow no redirect: the API key is only for the server that the user named."""


def read(place: str) -> str:
    """The text of a report from a file or a server. The first key of API_KEY is sent. Raises ReportError."""
    try:
        if not place.startswith(("http://", "https://")):
            return Path(place).read_text()
        place = place.rstrip("/").removesuffix("/boot") + "/boot"
        request = urllib.request.Request(place)
        key = (os.environ.get("API_KEY") or os.environ.get("VLLM_API_KEY") or "").split(",")[0].strip()
        if key:
            request.add_header("Authorization", f"Bearer {key}")
        with urllib.request.build_opener(_NoRedirects).open(request, timeout=_FETCH_SECONDS) as response:
            return str(response.read().decode("utf-8", "replace"))
    except urllib.error.HTTPError as error:
        hint = "; set API_KEY to a key of the server" if error.code == 401 else ""
        raise ReportError(f"{place}: HTTP {error.code}{hint}") from None
    except urllib.error.URLError as error:
        raise ReportError(f"{place}: {getattr(error.reason, 'strerror', None) or error.reason}") from None
    except OSError as error:
        raise ReportError(f"{place}: {error.strerror or error}") from None
    except ValueError:  # an invalid URL, or a file that is not text
        raise ReportError(f"{place} is neither a file of text nor the address of a server") from None


def as_text(report: dict[str, Any]) -> str:
    """One line for each phase: process, name, start, duration, a bar on a common axis, and its details."""
    total = _total(report)
    lines = [f"{'process':8} {'phase':16} {'start':>8} {'took':>8}"]
    for phase in report["phases"]:
        first = round(phase["start"] / total * _BAR)
        length = max(1, round((phase["end"] - phase["start"]) / total * _BAR))
        bar = (" " * first + "█" * length)[:_BAR]
        took = phase["end"] - phase["start"]
        line = f"{phase['process']:8} {phase['name']:16} {phase['start']:7.3f}s {took:7.3f}s |{bar:{_BAR}}|"
        lines.append(f"{line} {_details(phase)}".rstrip())
    lines += [f"{name} at {at:.3f} s" for name, at in report["marks"].items()]
    return "\n".join(lines)


def as_svg(report: dict[str, Any]) -> str:
    """The same as an SVG image, with times in seconds since the start of the process."""
    total = _total(report)
    scale = (_WIDTH - _LEFT - 20) / total
    height = _ROW * (len(report["phases"]) + 3)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
    ]
    for row, phase in enumerate(report["phases"]):
        y = _ROW * (row + 1)
        width = max(1.0, (phase["end"] - phase["start"]) * scale)
        colour = _COLOURS.get(phase["process"], "#888888")
        label = escape(f"{phase['process']} {phase['name']}")
        title = escape(f"{phase['start']:.3f} - {phase['end']:.3f} s {_details(phase)}".strip())
        parts.append(f'<text x="10" y="{y + 14}">{label} {phase["end"] - phase["start"]:.3f} s</text>')
        parts.append(
            f'<rect x="{_LEFT + phase["start"] * scale:.1f}" y="{y + 3}" width="{width:.1f}" height="{_ROW - 6}" '
            f'fill="{colour}"><title>{title}</title></rect>'
        )
    for name, at in report["marks"].items():
        x = _LEFT + at * scale
        parts.append(f'<line x1="{x:.1f}" y1="14" x2="{x:.1f}" y2="{height - 30}" stroke="#d62728"/>')
        parts.append(f'<text x="{x:.1f}" y="12" text-anchor="end" fill="#d62728">{escape(name)} {at:.3f} s</text>')
    parts.append(f'<text x="{_LEFT}" y="{height - 10}">0 s</text>')
    parts.append(f'<text x="{_WIDTH - 20}" y="{height - 10}" text-anchor="end">{total:.2f} s</text>')
    parts.append("</svg>")
    return "\n".join(parts) + "\n"


def _total(report: dict[str, Any]) -> float:
    ends = [phase["end"] for phase in report["phases"]] + list(report["marks"].values())
    return max(ends, default=1.0) or 1.0


def _details(phase: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in phase["detail"].items())
