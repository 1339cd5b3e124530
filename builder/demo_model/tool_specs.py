"""The tools of the corpus: how their schemas may look, how people ask for them, what they return.

Names, argument names and descriptions vary, so that the model has to read the schema it is given and cannot
answer from memory.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from builder.demo_model import words
from builder.demo_model.chat import Phrases, phrases
from builder.demo_model.lists import listed

Values = dict[str, Any]


@dataclass(frozen=True)
class Parameter:
    """An argument: the names it may have in a schema, its JSON type, and what it may be described as."""

    key: str
    names: tuple[str, ...]
    type: str
    about: str
    optional: bool = False
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tool:
    """A tool: its schema's variants, the questions that need it, and its results with the answers they lead to."""

    key: str
    names: tuple[str, ...]
    about: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    asked: Phrases
    values: Callable[[random.Random], Values]
    result: Callable[[random.Random, Values], tuple[str, str]]
    clause: str = ""
    missing: str = ""


_CITY_NAMES = ("city", "city", "location", "place", "town")
_WEATHER = ("sunny", "cloudy", "rainy", "windy", "snowy", "foggy", "stormy", "clear", "partly cloudy", "light rain")
_CODES = tuple(listed("USD EUR GBP JPY CHF CAD AUD CNY INR SEK NOK DKK PLN BRL MXN ZAR KRW TRY NZD SGD"))
_LANGUAGES = tuple(
    listed("French German Spanish Italian Portuguese Dutch Polish Russian Japanese Chinese Arabic Turkish Greek")
)


def dump(value: Any) -> str:
    """JSON as the tools return it."""
    return json.dumps(value, ensure_ascii=False)


def _weather_result(rng: random.Random, values: Values) -> tuple[str, str]:
    degrees, sky = rng.randint(-15, 42), rng.choice(_WEATHER)
    result: Values = {
        rng.choice(("temperature", "temp", "temperature_c", "degrees")): degrees,
        rng.choice(("condition", "conditions", "weather", "sky", "summary")): sky,
    }
    if rng.random() < 0.3:
        result["humidity"] = rng.randint(10, 99)
    items = list(result.items())
    rng.shuffle(items)
    if rng.random() < 0.6:
        items.insert(0, ("city", values["city"]))
    answer = f"The weather in {values['city']} is {sky} with {degrees} degrees."
    if rng.random() < 0.2:
        return f"{sky}, {degrees} degrees", answer
    return dump(dict(items)), answer


def _calculate_values(rng: random.Random) -> Values:
    top = rng.choice((99, 999, 9999))
    left, sign, right = rng.randint(1, top), rng.choice("+-*/"), rng.randint(1, top)
    expression = f"{left} {sign} {right}"
    if rng.random() < 0.15:
        expression = f"({expression}) {rng.choice('+-*')} {rng.randint(2, 99)}"
    return {"expression": expression}


def _calculate_result(rng: random.Random, values: Values) -> tuple[str, str]:
    number = rng.randint(-999, 99999) if rng.random() < 0.7 else round(rng.uniform(0, 999), 2)
    answer = f"{values['expression']} = {number}."
    return (str(number) if rng.random() < 0.4 else dump({rng.choice(("result", "value")): number})), answer


def _time_result(rng: random.Random, values: Values) -> tuple[str, str]:
    clock = f"{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}"
    answer = f"It is {clock} in {values['city']}."
    return (clock if rng.random() < 0.3 else dump({rng.choice(("time", "local_time", "current_time")): clock})), answer


def _search_result(rng: random.Random, values: Values) -> tuple[str, str]:
    title = words.phrase(rng, 2, 6)
    answer = f"I found this: {title}."
    if rng.random() < 0.4:
        return title, answer
    if rng.random() < 0.5:
        return dump({"results": [{"title": title}]}), answer
    return dump({rng.choice(("title", "snippet", "text", "result")): title}), answer


def _status(rng: random.Random) -> str:
    return rng.choice(('{"status": "ok"}', '{"status": "sent"}', "ok", "done", '{"success": true}', '{"ok": true}'))


def _address(rng: random.Random) -> str:
    left = words.person(rng).lower()
    if rng.random() < 0.3:
        left += f".{words.invented(rng)}"
    return f"{left}@{words.some_word(rng)}.{rng.choice(('com', 'org', 'net', 'eu'))}"


def _money_result(rng: random.Random, values: Values) -> tuple[str, str]:
    number = round(rng.uniform(1, 999), 2)
    answer = f"{values['amount']} {values['from']} is {number} {values['to']}."
    return (
        str(number) if rng.random() < 0.3 else dump({rng.choice(("result", "amount", "converted")): number})
    ), answer


def _money_values(rng: random.Random) -> Values:
    source, target = rng.sample(_CODES, 2)
    return {"amount": rng.randint(1, 2000), "from": source, "to": target}


def _translate_result(rng: random.Random, values: Values) -> tuple[str, str]:
    text = " ".join(words.invented(rng) for _ in range(rng.randint(1, 4)))
    answer = f'In {values["language"]} it is "{text}".'
    return (text if rng.random() < 0.3 else dump({rng.choice(("translation", "text", "result")): text})), answer


TOOLS: tuple[Tool, ...] = (
    Tool(
        "weather",
        ("get_weather", "get_weather", "get_current_weather", "weather", "weather_lookup"),
        (
            "Get the weather in a city",
            "Returns the current weather",
            "Current weather for a place",
            "Look up the weather",
        ),
        (
            Parameter("city", _CITY_NAMES, "string", "The name of the city"),
            Parameter("unit", ("unit", "units"), "string", "Temperature unit", True, ("celsius", "fahrenheit")),
        ),
        phrases(
            """
            What is the weather in {city}?
            What's the weather in {city}?
            What is the weather like in {city}?
            How is the weather in {city}?
            Tell me the weather in {city}.
            What is the weather in {city} today?
            What's the weather like in {city} right now?
            Is it raining in {city}?
            How warm is it in {city}?
            How hot is it in {city}?
            Is it cold in {city}?
            Is it warm in {city} today?
            Can you check the weather in {city}?
            weather in {city}
            I need the weather for {city}.
            Give me the weather in {city}.
            """,
            """
            Could you tell me the weather in {city}?
            Please check the weather in {city}.
            What is the weather in {city} right now?
            How cold is it in {city}?
            """,
        ),
        lambda rng: {"city": words.city(rng)},
        _weather_result,
        "what is the weather in {city}",
        "the weather",
    ),
    Tool(
        "calculate",
        ("calculate", "calculate", "calculator", "evaluate", "compute"),
        ("Evaluate an arithmetic expression", "A calculator", "Calculates a mathematical expression"),
        (
            Parameter(
                "expression", ("expression", "expression", "expr", "formula"), "string", "The expression to evaluate"
            ),
        ),
        phrases(
            """
            What is {expression}?
            Calculate {expression}.
            How much is {expression}?
            Compute {expression}.
            Please calculate {expression}.
            {expression} = ?
            Work out {expression}.
            Use the calculator for {expression}.
            What's {expression}?
            Can you calculate {expression}?
            """,
            "Please compute {expression}.\nCould you calculate {expression}?\nTell me how much {expression} is.",
        ),
        _calculate_values,
        _calculate_result,
        "what is {expression}",
        "",
    ),
    Tool(
        "time",
        ("get_time", "get_time", "get_current_time", "current_time", "clock"),
        ("Get the current time in a city", "Returns the local time", "Tells the time at a place"),
        (Parameter("city", _CITY_NAMES, "string", "The name of the city"),),
        phrases(
            """
            What time is it in {city}?
            What is the time in {city}?
            Tell me the time in {city}.
            What's the local time in {city}?
            How late is it in {city}?
            What is the current time in {city}?
            Can you tell me the time in {city}?
            time in {city}
            """,
            "What time is it now in {city}?\nPlease tell me the time in {city}.\nWhat's the time in {city}?",
        ),
        lambda rng: {"city": words.city(rng)},
        _time_result,
        "what time is it in {city}",
        "the time",
    ),
    Tool(
        "search",
        ("web_search", "web_search", "search", "search_web", "internet_search"),
        ("Search the web", "Searches the internet for a query", "Find pages on the web"),
        (Parameter("query", ("query", "query", "q", "search_query"), "string", "The search query"),),
        phrases(
            """
            Search the web for {query}.
            Search for {query}.
            Look up {query} on the web.
            Find pages about {query}.
            Google {query}.
            Can you search for {query}?
            Please search the internet for {query}.
            Look for {query} online.
            search {query}
            Please look up {query}.
            Can you look for {query} on the internet?
            """,
            "Please search the web for {query}.\nCan you look up {query} on the web?\nSearch the internet for {query}.",
        ),
        lambda rng: {"query": words.phrase(rng, 1, 5)},
        _search_result,
        "search the web for {query}",
        "",
    ),
    Tool(
        "email",
        ("send_email", "send_email", "send_mail", "email", "mail"),
        ("Send an email", "Sends a message by email", "Write an email to somebody"),
        (
            Parameter("to", ("to", "to", "recipient", "address"), "string", "The address of the recipient"),
            Parameter("subject", ("subject", "subject", "title"), "string", "The subject line"),
            Parameter("body", ("body", "body", "message", "text", "content"), "string", "The text of the email"),
        ),
        phrases(
            """
            Send an email to {to} with the subject "{subject}" and the text "{body}".
            Write an email to {to}. Subject: {subject}. Text: {body}
            Email {to} with the subject {subject} and say: {body}
            Send a mail to {to}, subject "{subject}", body "{body}".
            Please send an email to {to} with the subject "{subject}" and the message "{body}".
            Mail {to} about "{subject}": {body}
            """,
            """
            Please email {to} with the subject "{subject}" and the text "{body}".
            Send an email to {to}. Subject: {subject}. Text: {body}
            """,
        ),
        lambda rng: {"to": _address(rng), "subject": words.phrase(rng, 1, 3), "body": words.phrase(rng, 2, 6)},
        lambda rng, values: (_status(rng), f"I have sent the email to {values['to']}."),
        "",
        "",
    ),
    Tool(
        "currency",
        ("convert_currency", "convert_currency", "currency_converter", "exchange"),
        ("Convert money between currencies", "Converts an amount to another currency", "Currency conversion"),
        (
            Parameter("amount", ("amount", "amount", "value"), "number", "The amount of money"),
            Parameter("from", ("from_currency", "from", "source"), "string", "The currency to convert from"),
            Parameter("to", ("to_currency", "to", "target"), "string", "The currency to convert to"),
        ),
        phrases(
            """
            Convert {amount} {from} to {to}.
            How much is {amount} {from} in {to}?
            What is {amount} {from} in {to}?
            Change {amount} {from} into {to}.
            How many {to} are {amount} {from}?
            I have {amount} {from}. How much is that in {to}?
            Please convert {amount} {from} into {to}.
            """,
            "Please convert {amount} {from} to {to}.\nConvert {amount} {from} into {to}.\n"
            "Tell me how much {amount} {from} is in {to}.",
        ),
        _money_values,
        _money_result,
        "how much is {amount} {from} in {to}",
        "exchange rates",
    ),
    Tool(
        "timer",
        ("set_timer", "set_timer", "start_timer", "timer"),
        ("Set a timer", "Starts a timer", "Start a countdown"),
        (Parameter("minutes", ("minutes", "minutes", "duration_minutes"), "integer", "How many minutes"),),
        phrases(
            """
            Set a timer for {minutes} minutes.
            Start a timer for {minutes} minutes.
            Set a {minutes} minute timer.
            Timer for {minutes} minutes, please.
            Can you set a timer for {minutes} minutes?
            Start a {minutes} minute timer.
            Wake me in {minutes} minutes.
            Remind me in {minutes} minutes.
            """,
            "Please set a timer for {minutes} minutes.\nPlease start a {minutes} minute timer.\n"
            "I need a timer for {minutes} minutes.",
        ),
        lambda rng: {"minutes": rng.randint(2, 180)},
        lambda rng, values: (_status(rng), f"The timer is set for {values['minutes']} minutes."),
        "set a timer for {minutes} minutes",
        "a timer",
    ),
    Tool(
        "translate",
        ("translate", "translate", "translate_text", "translator"),
        ("Translate a text", "Translates text into another language", "Translation into a language"),
        (
            Parameter("text", ("text", "text", "sentence"), "string", "The text to translate"),
            Parameter(
                "language", ("target_language", "language", "target"), "string", "The language to translate into"
            ),
        ),
        phrases(
            """
            Translate "{text}" into {language}.
            Translate "{text}" to {language}.
            How do you say "{text}" in {language}?
            What is "{text}" in {language}?
            Please translate "{text}" into {language}.
            Translate into {language}: {text}
            """,
            'Please translate "{text}" to {language}.\nCan you translate "{text}" into {language}?\n'
            "Translate to {language}: {text}",
        ),
        lambda rng: {"text": words.phrase(rng, 1, 5), "language": rng.choice(_LANGUAGES)},
        _translate_result,
        'how do you say "{text}" in {language}',
        "",
    ),
)
