"""What instructor does with a server, in each of its modes: python instructor_chat.py BASE_URL."""

import sys
from typing import Any

import instructor
from openai import OpenAI
from pydantic import BaseModel, Field, field_validator


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
    print("ok")


if __name__ == "__main__":
    main(sys.argv[1])
