"""What instructor does with a server, in each of its modes: python -m tests.clients.instructor_chat BASE_URL."""

import sys
from collections.abc import Iterable
from typing import Any

import instructor
from instructor.core import InstructorRetryException
from openai import APIStatusError, OpenAI
from pydantic import BaseModel, ConfigDict, Field, field_validator

from tests.clients.common import is_queue

WEATHER = "What is the weather in Paris?"


class Place(BaseModel):
    """A place."""

    city: str = Field(max_length=20)
    people: int = Field(ge=0, le=99)


attempts = 0


class Stubborn(BaseModel):
    """A place whose first answer is refused, so that instructor asks again with the error."""

    city: str = Field(max_length=20)

    @field_validator("city")
    @classmethod
    def second_only(cls, value: str) -> str:
        global attempts
        attempts += 1
        if attempts == 1:
            raise ValueError("say it again")
        return value


class get_weather(BaseModel):
    """Get the weather in a city"""

    city: str


class get_time(BaseModel):
    """Get the time in a city"""

    city: str


class Loose(BaseModel):
    """Any JSON object."""

    model_config = ConfigDict(extra="allow")


def errors(base_url: str, options: dict[str, Any]) -> None:
    """Over HTTP an error has its own status. Through a queue a failed job is a 500 with the same body."""
    client = instructor.from_openai(OpenAI(base_url=base_url, api_key="none", max_retries=0))
    refused: dict[str, Any] = {**options, "temperature": -1}
    try:
        client.chat.completions.create(response_model=Place, max_retries=0, **refused)
    except InstructorRetryException as error:
        cause = error.__cause__ or error.__context__
        while cause is not None and not isinstance(cause, APIStatusError):
            cause = cause.__cause__ or cause.__context__
        assert "temperature" in str(error), error
        assert cause is not None and cause.status_code == (500 if is_queue(base_url) else 400), error
    else:
        raise AssertionError("a temperature of -1 was taken")


def main(base_url: str) -> None:
    messages: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
    options: dict[str, Any] = {"model": "demo", "messages": messages, "temperature": 0.5, "max_tokens": 300}
    for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA, instructor.Mode.TOOLS_STRICT):
        client = instructor.from_openai(OpenAI(base_url=base_url, api_key="none"), mode=mode)
        place = client.chat.completions.create(response_model=Place, max_retries=0, **options)
        assert isinstance(place, Place), mode
        if mode is not instructor.Mode.TOOLS_STRICT:
            pieces = list(client.chat.completions.create_partial(response_model=Place, max_retries=0, **options))
            assert pieces and isinstance(pieces[-1].people, int), (mode, pieces[-1:])
    client = instructor.from_openai(OpenAI(base_url=base_url, api_key="none"), mode=instructor.Mode.TOOLS)
    again = client.chat.completions.create(response_model=Stubborn, max_retries=2, **options)
    assert isinstance(again, Stubborn) and attempts >= 2
    loose = instructor.from_openai(OpenAI(base_url=base_url, api_key="none"), mode=instructor.Mode.JSON)
    assert isinstance(loose.chat.completions.create(response_model=Loose, max_retries=0, **options), Loose)
    several = instructor.from_openai(OpenAI(base_url=base_url, api_key="none"), mode=instructor.Mode.PARALLEL_TOOLS)
    weather: Any = {**options, "temperature": 0, "messages": [{"role": "user", "content": WEATHER}]}
    calls = list(several.chat.completions.create(response_model=Iterable[get_weather | get_time], **weather))
    assert calls == [get_weather(city="Paris")], calls
    errors(base_url, options)
    print("ok")


if __name__ == "__main__":
    main(sys.argv[1])
