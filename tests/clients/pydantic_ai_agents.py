"""What pydantic-ai does with /v1/responses and /v1/messages: python -m tests.clients.pydantic_ai_agents BASE_URL."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from anthropic import AsyncAnthropic
from openai import AsyncOpenAI
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIResponsesModel
from pydantic_ai.profiles import ModelProfile
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.settings import ModelSettings

from tests.clients.common import QUESTION, Place, status_of_refused
from tests.clients.pydantic_ai_chat import SETTINGS, tools


async def chats(model: Any) -> None:
    whole = await Agent(model, model_settings=SETTINGS).run(QUESTION)
    assert whole.output and whole.usage.output_tokens > 0, whole
    async with Agent(model, model_settings=SETTINGS).run_stream(QUESTION) as stream:
        assert await stream.get_output() == whole.output


async def typed(model: Any, outputs: list[Any]) -> None:
    for output in outputs:
        agent: Agent[None, Any] = Agent(model, output_type=output, model_settings=SETTINGS, retries=3)
        assert isinstance((await agent.run(QUESTION)).output, Place), output
        async with agent.run_stream(QUESTION) as stream:
            assert isinstance(await stream.get_output(), Place), output


async def refused(model: Any, base_url: str) -> None:
    try:
        await Agent(model, model_settings=ModelSettings(temperature=-1)).run("Hello")
    except ModelHTTPError as error:
        assert error.status_code == status_of_refused(base_url) and "temperature" in str(error.body), error
    else:
        raise AssertionError("a temperature of -1 was taken")


async def main(base_url: str) -> None:
    openai = AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0)
    anthropic = AsyncAnthropic(base_url=base_url.removesuffix("/v1"), api_key="none", max_retries=0)
    with_schemas = ModelProfile(supports_json_schema_output=True)  # it knows this of Anthropic's models alone
    models: list[Any] = [
        OpenAIResponsesModel("demo", provider=OpenAIProvider(openai_client=openai)),
        AnthropicModel("demo", provider=AnthropicProvider(anthropic_client=anthropic), profile=with_schemas),
    ]
    for model in models:
        await chats(model)
        await tools(model)
        await typed(model, [ToolOutput(Place), NativeOutput(Place)])
        await refused(model, base_url)
    print("ok")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
