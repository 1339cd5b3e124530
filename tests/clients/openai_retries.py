"""OpenAI's Python SDK at a server that is too busy: python -m tests.clients.openai_retries BASE_URL."""

import asyncio
import sys
from typing import Any

from openai import AsyncOpenAI, DefaultAsyncHttpxClient, InternalServerError

AT_ONCE = 5
QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]
LONG: Any = {"model": "demo", "messages": QUESTION, "max_tokens": 60, "extra_body": {"ignore_eos": True}}
refusals: list[Any] = []  # the answers that were no success


async def note_refusal(response: Any) -> None:
    if response.status_code != 200:
        refusals.append(response)


async def main(base_url: str) -> None:
    hooks: Any = {"response": [note_refusal]}
    async with AsyncOpenAI(
        base_url=base_url, api_key="none", http_client=DefaultAsyncHttpxClient(event_hooks=hooks, timeout=200)
    ) as client:
        impatient = client.with_options(max_retries=0)
        outcomes = await asyncio.gather(
            *(impatient.chat.completions.create(**LONG) for _ in range(AT_ONCE)), return_exceptions=True
        )
        failures = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        assert len(failures) == len(refusals) < AT_ONCE, failures
        for failure in failures:
            assert isinstance(failure, InternalServerError) and failure.status_code == 503, failure
            assert float(failure.response.headers["retry-after-ms"]) > 0
            assert int(failure.response.headers["retry-after"]) > 0

        patient = client.with_options(max_retries=60)
        answers = await asyncio.gather(*(patient.chat.completions.create(**LONG) for _ in range(AT_ONCE)))
        assert all(answer.usage and answer.usage.completion_tokens == 60 for answer in answers)
        streams = await asyncio.gather(*(patient.chat.completions.create(**LONG, stream=True) for _ in range(AT_ONCE)))
        for stream in streams:
            reasons = [chunk.choices[0].finish_reason async for chunk in stream if chunk.choices]
            assert reasons[-1] == "length", reasons
    print(f"{len(refusals)} refused")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
