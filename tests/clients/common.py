"""What the sessions of the clients have in common: the question, the place, and the tool's answer.

The sessions run as `python -m tests.clients.NAME BASE_URL` in the repository's root, in several environments: this
module imports pydantic alone, which all of them have.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, Field

QUESTION = "What is the capital of France?"
CITIES = ("Paris", "Rome", "Oslo")


class Place(BaseModel):
    """A place."""

    city: str = Field(max_length=20)


def weather_in(city: str) -> str:
    """What the tool `get_weather` says."""
    return f"21 degrees and clear in {city}"


def _function(name: str, description: str) -> dict[str, Any]:
    parameters = {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    }
    return {"name": name, "description": description, "parameters": parameters}


FUNCTIONS = [_function("get_weather", "Get the weather in a city"), _function("get_time", "Get the time in a city")]
CHAT_TOOLS: Any = [{"type": "function", "function": function} for function in FUNCTIONS]
RESPONSES_TOOL: Any = {"type": "function", **FUNCTIONS[0], "strict": True}
ANTHROPIC_TOOL: Any = {
    "name": FUNCTIONS[0]["name"],
    "description": FUNCTIONS[0]["description"],
    "input_schema": FUNCTIONS[0]["parameters"],
}


def is_queue(base_url: str) -> bool:
    return "/v2/" in base_url


def status_of_refused(base_url: str, status: int = 400) -> int:
    """Over HTTP an error has its own status. Through a queue a failed job is a 500 with the same body."""
    return 500 if is_queue(base_url) else status


def raised(kind: type[Exception], ask: Callable[[], object], says: str) -> Any:
    """The error that `ask` raises, whose text must have `says` in it."""
    try:
        ask()
    except kind as error:
        assert says in f"{error} {getattr(error, 'body', '')}", error
        return error
    raise AssertionError(f"no error about {says}")
