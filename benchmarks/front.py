"""CPU time of the front: per streamed chunk of a worker with many chats, and per token in the parsers.

    python benchmarks/front.py [--chats 256] [--tokens 64] [--rounds 5]

The first table is for `ember serve demo`: the CPU time of its front process, without the engine's, from the first
request to the last chunk, divided by the number of chunks. The second table is for the parsers alone, in this process:
the same tokens through a sample with and without parsers, one token at a time. `--json FILE` writes the rows.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # not this directory: its queue.py is not the library's

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "search",
            "description": "Search the documents",
            "parameters": {"type": "object", "properties": {"query": {"type": "string"}, "limit": {"type": "integer"}}},
        },
    }
]
TEXT = "The quick brown fox jumps over the lazy dog, and nobody knows why it would do such a thing again. "
CALL = '<tool_call>\n{"name": "search", "arguments": {"query": "%s", "limit": 10}}\n</tool_call>' % (TEXT * 8)
# name -> what the model says
OUTPUTS = {
    "content": TEXT * 20,
    "reasoning": f"<think>\n{TEXT * 20}\n</think>\n\nYes.",
    "tool call": CALL,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--chats", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, default=None, metavar="FILE")
    options = parser.parse_args()
    rows = {"streams": _streams(options), "parsers": _parsers(options)}
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


# ------------------------------------------------------------------------------------------------------------ streams


def _streams(options: argparse.Namespace) -> list[dict[str, Any]]:
    from tests.support.processes import Process, url_of

    rows = []
    print(f"{options.chats} streamed chats at once, {options.tokens} tokens each, demo model\n")
    print("| request | chunks | front CPU us per chunk | chunks per second of front CPU |")
    print("|---|---|---|---|")
    with Process("-m", "ember", "serve", "demo", "--host", "127.0.0.1", "--port", "0") as server:
        url = url_of(server, 120.0)
        kinds: dict[str, dict[str, Any]] = {
            "plain": {},
            "reasoning": {"chat_template_kwargs": {"enable_thinking": True}},
            "tools": {"tools": TOOLS},
        }
        for name, fields in kinds.items():
            asyncio.run(_chats(url, fields, 8, options.tokens))
            costs, chunks = [], 0
            for _ in range(options.rounds):
                before = _cpu_seconds(server.popen.pid)
                chunks = asyncio.run(_chats(url, fields, options.chats, options.tokens))
                costs.append((_cpu_seconds(server.popen.pid) - before) / chunks)
            cost = statistics.median(costs)
            rows.append({"request": name, "chunks": chunks, "us_per_chunk": cost * 1e6})
            print(f"| {name} | {chunks} | {cost * 1e6:.0f} | {1 / cost:,.0f} |", flush=True)
    return rows


async def _chats(url: str, fields: dict[str, Any], count: int, tokens: int) -> int:
    """How many chunks came."""
    import aiohttp

    body = {
        "model": "demo",
        "messages": [{"role": "user", "content": "Tell me about France."}],
        "stream": True,
        "max_tokens": tokens,
        "min_tokens": tokens,
        "temperature": 1.0,
        **fields,
    }

    async def one(session: aiohttp.ClientSession) -> int:
        async with session.post(f"{url}/v1/chat/completions", json=body) as answer:
            answer.raise_for_status()
            return (await answer.read()).count(b"data: ")

    timeout = aiohttp.ClientTimeout(total=600)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        return sum(await asyncio.gather(*(one(session) for _ in range(count))))


def _cpu_seconds(pid: int) -> float:
    """User and system time of all threads of the process; not of its children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# ------------------------------------------------------------------------------------------------------------ parsers


def _parsers(options: argparse.Namespace) -> list[dict[str, Any]]:
    from ember.front.text.reasoning import choose_reasoning_format
    from ember.front.text.tokenizer import Tokenizer
    from ember.front.text.tools import choose_tool_format

    tokenizer = Tokenizer.load(ROOT / "src/ember/demo")
    source = tokenizer.chat_template
    assert isinstance(source, str)
    reasoning, _ = choose_reasoning_format(source, None, "demo", None)
    tools, _ = choose_tool_format(source, None, "demo", None)
    rows = []
    print("\n| output | tokens | us per token | with parsers | the parsers |")
    print("|---|---|---|---|---|")
    for name, text in OUTPUTS.items():
        token_ids = tokenizer.encode(text, add_special_tokens=False)
        plain = _cost(tokenizer, token_ids, None, None, options.rounds)
        read = _cost(tokenizer, token_ids, reasoning, tools, options.rounds)
        rows.append({"output": name, "tokens": len(token_ids), "plain_us": plain, "read_us": read})
        print(f"| {name} | {len(token_ids)} | {plain:.2f} | {read:.2f} | {read - plain:.2f} |", flush=True)
    return rows


def _cost(tokenizer: Any, token_ids: list[int], reasoning: Any, tools: Any, rounds: int) -> float:
    """CPU microseconds for a token, in a sample that reads them one by one."""
    from ember.front.api.output_reader import ReaderOptions
    from ember.front.api.samples import Piece, Sample, TextOptions
    from ember.front.api.tools import ToolUse
    from ember.wire import SequenceOutput

    outputs = [SequenceOutput(1, 0, [token_id]) for token_id in token_ids]
    use = ToolUse(TOOLS, tuple(TOOLS), "auto") if tools is not None else ToolUse()
    reader = ReaderOptions(tokenizer, reasoning, tools, use) if reasoning is not None else None
    costs = []
    for _ in range(4 * rounds + 1):
        sample = Sample(0, tokenizer, [], TextOptions(reader=reader))
        start = time.process_time()
        for output in outputs:
            sample.push(output, Piece(0))
        costs.append((time.process_time() - start) / len(outputs) * 1e6)
    return statistics.median(costs[1:])


if __name__ == "__main__":
    main()
