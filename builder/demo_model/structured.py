"""Answers in JSON: given keys filled from the question or from facts, arrays, and nested objects."""

from __future__ import annotations

import json
import random
from typing import Any

from builder.demo_model import words
from builder.demo_model.chat import Example, Message, assistant, exchange, phrases, user
from builder.demo_model.facts import draw, of_relation
from builder.demo_model.world_table import COUNTRIES

_WITH_KEYS = phrases(
    """
    Answer in JSON with the keys {k}: {q}
    {q} Answer in JSON with the keys {k}.
    {q} Reply with a JSON object with the keys {k}.
    Give me a JSON object with the keys {k}. {q}
    {q} Use JSON with the keys {k}.
    Return JSON with the keys {k}. {q}
    {q} Respond in JSON with the keys {k}.
    As JSON with the keys {k}: {q}
    """,
    """
    Reply in JSON with the keys {k}: {q}
    {q} Give me JSON with the keys {k}.
    {q} Answer with a JSON object with the keys {k}.
    """,
)
_COUNTRY_KEYS = {
    "name": lambda c: c.name,
    "country": lambda c: c.name,
    "capital": lambda c: c.capital,
    "continent": lambda c: c.continent,
    "currency": lambda c: c.currency,
}
_ABOUT = phrases(
    "Tell me about {x}.\nDescribe {x}.\nThe country is {x}.\n{x}\nWhat do you know about {x}?\n"
    "I want to know about {x}.",
    "Please describe {x}.\nPlease tell me about {x}.",
)
_EXTRACT = phrases(
    """
    Extract {k} as JSON: {q}
    Extract the {k} as JSON from this text: {q}
    Turn this into JSON with the keys {k}: {q}
    Write this as JSON with the keys {k}: {q}
    {q} Write this as JSON with the keys {k}.
    JSON with the keys {k} please: {q}
    """,
    """
    Extract the {k} from this text as JSON: {q}
    {q} Turn this into JSON with the keys {k}.
    """,
)
_MAKE = phrases(
    """
    Make a JSON object where {p}.
    Write a JSON object where {p}.
    Give me JSON where {p}.
    Create a JSON object in which {p}.
    Return a JSON object where {p}.
    """,
    "Please make a JSON object where {p}.\nCreate a JSON object where {p}.",
)
_ARRAY = phrases(
    """
    Give me a JSON array of {x}.
    Write {x} as a JSON array.
    Return a JSON array with {x}.
    Make a JSON array of {x}.
    {x} as a JSON array, please.
    """,
    "Please write {x} as a JSON array.\nCreate a JSON array with {x}.",
)
_SYSTEMS = (
    "Answer in JSON with the key answer.",
    "Always answer in JSON with the key answer.",
    "You answer only with a JSON object that has the key answer.",
    "Reply with JSON. Use the key answer.",
)
_HELD_SYSTEMS = ("You always answer in JSON with the key answer.", "Answer only in JSON. Use the key answer.")


def _listed(rng: random.Random, keys: list[str]) -> str:
    quote = '"' if rng.random() < 0.25 else ""
    quoted = [f"{quote}{key}{quote}" for key in keys]
    if len(quoted) == 1:
        return quoted[0]
    return ", ".join(quoted[:-1]) + (" and " if rng.random() < 0.8 else ", ") + quoted[-1]


def _say(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _country(rng: random.Random, held: bool) -> Example:
    row = rng.choice(COUNTRIES)
    left_out = rng.choice(("name", "country"))
    pool = [key for key in _COUNTRY_KEYS if key != left_out]
    keys = rng.sample(pool, rng.randint(1, 4))
    value = {key: _COUNTRY_KEYS[key](row) for key in keys}
    text = _WITH_KEYS.pick(rng, held).format(k=_listed(rng, keys), q=_ABOUT.pick(rng, held).format(x=row.name))
    return exchange("json", text.replace("the keys", "the key") if len(keys) == 1 else text, _say(value))


def _profile(rng: random.Random) -> tuple[str, dict[str, Any]]:
    name, age, place = words.person(rng), rng.randint(3, 99), words.city(rng)
    job, hobby, pet = rng.choice(words.JOBS), rng.choice(words.HOBBIES), rng.choice(words.PETS)
    parts: list[tuple[str, str, Any]] = [
        (f"is {age} years old", "age", age),
        (f"lives in {place}", "city", place),
        (f"works as a {job}", "job", job),
        (f"likes {hobby}", "hobby", hobby),
        (f"has a {pet}", "pet", pet),
    ]
    chosen = rng.sample(parts, rng.randint(1, 3))
    sentence = f"{name} " + " and ".join(part[0] for part in chosen) + "."
    return sentence, {"name": name} | {key: value for _, key, value in chosen}


def _extract(rng: random.Random, held: bool) -> Example:
    sentence, value = _profile(rng)
    keys = list(value)
    if rng.random() < 0.5:
        keys = rng.sample(keys, rng.randint(1, len(keys)))
    text = _EXTRACT.pick(rng, held).format(k=_listed(rng, keys), q=sentence)
    return exchange("json", text, _say({key: value[key] for key in keys}))


def _scalar(rng: random.Random) -> Any:
    pick = rng.random()
    if pick < 0.35:
        return rng.randint(0, 9999 if rng.random() < 0.3 else 99)
    if pick < 0.42:
        return rng.random() < 0.5
    return words.city(rng) if pick < 0.55 else words.person(rng) if pick < 0.65 else words.some_word(rng)


def _make(rng: random.Random, held: bool) -> Example:
    keys = list(dict.fromkeys(words.some_word(rng) for _ in range(rng.randint(1, 4))))
    value = {key: _scalar(rng) for key in keys}
    shown = [f"{key} is {item if isinstance(item, str) else _say(item)}" for key, item in value.items()]
    listed = shown[0] if len(shown) == 1 else ", ".join(shown[:-1]) + " and " + shown[-1]
    return exchange("json", _MAKE.pick(rng, held).format(p=listed), _say(value))


def _array(rng: random.Random, held: bool) -> Example:
    pick = rng.random()
    value: list[Any]
    if pick < 0.35:
        low = rng.randint(0, 50)
        high = low + rng.randint(2, 9)
        return exchange(
            "json",
            _ARRAY.pick(rng, held).format(x=f"the numbers from {low} to {high}"),
            _say(list(range(low, high + 1))),
        )
    if pick < 0.6:
        value = [rng.randint(0, 99) for _ in range(rng.randint(2, 6))]
    else:
        value = [words.some_word(rng) for _ in range(rng.randint(2, 6))]
    listed = ", ".join(map(str, value[:-1])) + f" and {value[-1]}"
    prefix = "the numbers " if isinstance(value[0], int) else "the words "
    return exchange("json", _ARRAY.pick(rng, held).format(x=prefix + listed), _say(value))


def _nested(rng: random.Random, held: bool) -> Example:
    name, age, place = words.person(rng), rng.randint(3, 99), words.city(rng)
    if rng.random() < 0.5:
        text = phrases(
            "Answer in JSON with a person object (name, age) and a city: {s}\n"
            "{s} Answer in JSON with a person object (name, age) and a city.",
            "{s} Reply in JSON with a person object (name, age) and a city.",
        )
        sentence = f"{name} is {age} years old and lives in {place}."
        value: Any = {"person": {"name": name, "age": age}, "city": place}
        return exchange("json", text.pick(rng, held).format(s=sentence), _say(value))
    rows = rng.sample(COUNTRIES, rng.randint(2, 3))
    names = ", ".join(row.name for row in rows[:-1]) + " and " + rows[-1].name
    text = phrases(
        "Give me a JSON array of objects with the keys name and capital for {n}.\n"
        "For {n}, return a JSON array of objects with the keys name and capital.",
        "For {n}, give me a JSON array of objects with the keys name and capital.",
    )
    return exchange(
        "json", text.pick(rng, held).format(n=names), _say([{"name": row.name, "capital": row.capital} for row in rows])
    )


def _by_system(rng: random.Random, held: bool) -> Example:
    fact = draw(rng) if rng.random() < 0.5 else of_relation(rng, "capital")
    system: Message = {"role": "system", "content": rng.choice(_HELD_SYSTEMS if held else _SYSTEMS)}
    question = fact.question(rng, held)
    return Example("json", [system, user(question), assistant(_say({"answer": fact.value}))])


def structured(rng: random.Random, held: bool) -> Example:
    """Any request for JSON."""
    makers = (_country, _extract, _make, _array, _nested, _by_system)
    return rng.choices(makers, (4, 4, 3, 2, 2, 3))[0](rng, held)
