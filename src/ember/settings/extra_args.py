"""VLLM_EXTRA_ARGS: a command line of `vllm serve`, which other workers pass on as it is.

Its flags are settings under the names that they have as variables: `--max-model-len 4096` is MAX_MODEL_LEN=4096.
"""

from __future__ import annotations

import re
import shlex

NAME = "VLLM_EXTRA_ARGS"
_SHORT = {
    "-tp": "--tensor-parallel-size",
    "-pp": "--pipeline-parallel-size",
    "-dp": "--data-parallel-size",
    "-q": "--quantization",
    "-O": "--compilation-config",
    "-cc": "--compilation-config",
    "-ac": "--attention-config",
    "-sc": "--speculative-config",
    "-asc": "--api-server-count",
    "-ep": "--enable-expert-parallel",
    "-dcp": "--decode-context-parallel-size",
    "-pcp": "--prefill-context-parallel-size",
    "-dpa": "--data-parallel-address",
    "-dpb": "--data-parallel-backend",
    "-dpe": "--data-parallel-external-lb",
    "-dph": "--data-parallel-hybrid-lb",
    "-dpl": "--data-parallel-size-local",
    "-dpn": "--data-parallel-rank",
    "-dpp": "--data-parallel-rpc-port",
    "-dpr": "--data-parallel-start-rank",
}
_LEVEL = re.compile(r"-O\d+")  # a level of optimization beside its flag
_FLAG = re.compile(r"--?[A-Za-z]")


def read_extra_args(line: str) -> list[tuple[str, str, str]]:
    """The flags of a command line: each as it was written, the name of its variable, and its value. A flag without a
    value is `true`, one that begins with `--no-` is `false`, several values are joined by commas, and of
    `--config.part` the part is left out. Raises ValueError for quotes that do not end, and for a value without a
    flag."""
    found: list[tuple[str, str, list[str]]] = []
    for word in shlex.split(line):
        if not _FLAG.match(word):
            if not found:
                raise ValueError("a value stands before every flag")
            found[-1][2].append(word)
            continue
        flag, equals, value = word.partition("=")
        head = "-O" if _LEVEL.fullmatch(flag) else flag.partition(".")[0]
        name = _SHORT.get(head, head).removeprefix("--").replace("-", "_").upper()
        found.append((flag, name, [value] if equals else []))
    return [_entry(flag, name, values) for flag, name, values in found]


def _entry(flag: str, name: str, values: list[str]) -> tuple[str, str, str]:
    if not values and name.startswith("NO_"):
        return flag, name.removeprefix("NO_"), "false"
    return flag, name, ",".join(values) if values else "true"
