"""The rows of a run as a table: what was measured, the figure, what it is read beside, and what was expected."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from benchmarks.gpu_check.predictions import expected

Row = dict[str, Any]
HEAD = "| model | what | figure | beside it | expected |\n|---|---|---|---|---|"


def table(rows: Iterable[Row]) -> str:
    rows = list(rows)
    peers = {row["model"]: row["tokens_per_second"] for row in rows if row["part"] == "peer"}
    lines = [HEAD]
    for row in rows:
        cells = _cells(row, peers)
        if cells is not None:
            lines.append(f"| {' | '.join((row.get('model', ''), *cells, expected(row)))} |")
    return "\n".join(lines)


def _cells(row: Row, peers: dict[str, float]) -> tuple[str, str, str] | None:
    """What was measured, the figure, and what it is to be read beside; None for rows that the table leaves out."""
    rate = f"{row.get('tokens_per_second', 0):.0f} tokens/s"
    match row["part"]:
        case "ceilings":
            copy = f"copy {row['bytes_per_second'] / 1e9:.0f} GB/s"
            return "ceilings", copy, f"matmul {row['flops_per_second'] / 1e12:.0f} TFLOP/s"
        case "tests":
            return "tests", f"{row['passed']} passed", f"{row['failed']} failed, {row['skipped']} skipped"
        case "test":
            return row["name"].rpartition("/")[2], row["outcome"], ""
        case "decode":
            beside = f"{100 * row['tokens_per_second'] / row['limit']:.0f} % of the memory limit"
            if "device_waits" in row:
                beside += f"; the device waits {100 * row['device_waits']:.0f} % of a step"
            return f"decode, batch {row['batch']}, context {row['context']}", rate, beside
        case "prefill":
            share = 100 * row["share_of_matmul_rate"]
            return f"prefill, prompts of {row['prompt']}", rate, f"{share:.0f} % of the matmul rate"
        case "first":
            return f"first token, prompt of {row['prompt']}", f"{1000 * row['seconds']:.1f} ms", ""
        case "mixed":
            how = "from a graph" if row["from_graph"] else "kernel by kernel"
            figure = f"{1e6 * row['seconds']:.0f} us of the host"
            return (
                f"{row['decodes']} decodes and a prompt, {how}",
                figure,
                f"{row['microseconds_a_layer']:.0f} us a layer",
            )
        case "workload":
            peer = peers.get(row["model"])
            return "nano-vllm's workload", rate, f"{row['tokens_per_second'] / peer:.2f}x transformers" if peer else ""
        case "peer":
            return "transformers, continuous batching", rate, ""
        case "boot":
            return f"boot {row['run']}", f"first token {row['first_token']:.2f} s", f"answer {row['answer']:.2f} s"
        case "profile":
            what = f"{row['step']}, batch {row['batch']}: {row['kernel']}"
            return what, f"{row['microseconds']:.1f} us a step", f"{100 * row['share']:.0f} % of it"
        case "kernels":
            beside = f"{100 * row['share_of_bound']:.0f} % of the bound"
            if row["peer_seconds"]:
                beside += f"; {row['peer_seconds'] / row['seconds']:.2f}x {row['peer']}"
            return f"{row['kernel']}, {row['case']}", f"{1e6 * row['seconds']:.1f} us", beside
    return None
