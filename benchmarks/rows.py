"""Rows of measurements in a file. Each is written when it is known: a time limit costs only what comes after."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class RowFile:
    """A file with a JSON object a line. Without a path, nothing is written."""

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def add(self, row: Row) -> None:
        if self.path is not None:
            with self.path.open("a") as file:  # opened anew: several processes add to it
                file.write(json.dumps(row) + "\n")

    def read(self) -> list[Row]:
        if self.path is None or not self.path.exists():
            return []
        return [json.loads(line) for line in self.path.read_text().splitlines()]
