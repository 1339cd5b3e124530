"""Counting, repeating and listing: answers whose length the user controls."""

from __future__ import annotations

import random

from builder.demo_model import fact_tables as tables
from builder.demo_model import words
from builder.demo_model.chat import Example, exchange, phrases
from builder.demo_model.words import number_word

_COUNT_UP = phrases(
    """
    Count from {a} to {b}.
    Count from {a} up to {b}.
    Count up from {a} to {b}.
    Please count from {a} to {b}.
    Can you count from {a} to {b}?
    Write the numbers from {a} to {b}.
    List the numbers from {a} to {b}.
    count from {a} to {b}
    """,
    "Could you count from {a} to {b}?\nGive me the numbers from {a} to {b}.\nI want you to count from {a} to {b}.",
)
_COUNT_TO = phrases("Count to {b}.\nPlease count to {b}.\nCan you count to {b}?", "Could you count to {b}?")
_COUNT_DOWN = phrases(
    "Count down from {a} to {b}.\nCount backwards from {a} to {b}.\nPlease count down from {a} to {b}.",
    "Could you count down from {a} to {b}?\nCan you count backwards from {a} to {b}?",
)
_SAY = phrases(
    """
    Say {x} {t} times.
    Say "{x}" {t} times.
    Repeat {x} {t} times.
    Repeat the word {x} {t} times.
    Please say {x} {t} times.
    Write {x} {t} times.
    Can you say {x} {t} times?
    """,
    'Please repeat {x} {t} times.\nPlease write "{x}" {t} times.\nI want you to say {x} {t} times.',
)
_ECHO = phrases(
    """
    Repeat after me: {x}
    Say: {x}
    Say "{x}".
    Repeat this: {x}
    Repeat: {x}
    Please repeat: {x}
    Write exactly this: {x}
    Repeat the following words: {x}
    Echo: {x}
    """,
    'Please say: {x}\nPlease repeat after me: {x}\nRepeat exactly: {x}\nPlease say "{x}".',
)
_LISTS = (
    (
        phrases(
            "List the days of the week.\nName the days of the week.\nWhat are the days of the week?",
            "Please list the days of the week.\nCan you name the days of the week?",
        ),
        tables.WEEKDAYS,
    ),
    (
        phrases(
            "List the months of the year.\nName the months.\nWhat are the months of the year?",
            "Please list the months of the year.\nCan you name the months of the year?",
        ),
        tuple(m for m, _ in tables.MONTHS),
    ),
    (
        phrases(
            "List the planets.\nName the planets.\nWhat are the planets of the solar system?\nTell me all planets.",
            "Please list the planets.\nCan you name the planets?",
        ),
        tables.PLANETS,
    ),
    (
        phrases(
            "Say the alphabet.\nWrite the alphabet.\nList the letters of the alphabet.\nTell me the alphabet.",
            "Please say the alphabet.\nCan you write the alphabet?",
        ),
        tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
    ),
    (
        phrases(
            "Name the seasons.\nList the seasons.\nWhat are the four seasons?\nTell me the seasons.",
            "Please list the seasons.\nCan you name the four seasons?",
        ),
        ("spring", "summer", "autumn", "winter"),
    ),
)


_GREETINGS = ("hello", "hi", "yes", "no", "okay", "bye", "test", "thanks", "Hello", "Ember")


def _count(rng: random.Random, held: bool) -> tuple[str, str]:
    length = rng.randint(2, 12) if rng.random() < 0.7 else rng.randint(12, 60)
    low = 1 if rng.random() < 0.3 else rng.randint(0, 100 - length)
    if rng.random() < 0.05:
        low, length = 1, 99
    high = low + length
    draw = rng.random()
    if draw < 0.25:
        numbers = range(high, low - 1, -1)
        text = _COUNT_DOWN.pick(rng, held).format(a=high, b=low)
    elif low == 1 and draw < 0.6:
        numbers = range(low, high + 1)
        text = _COUNT_TO.pick(rng, held).format(b=high)
    else:
        numbers = range(low, high + 1)
        text = _COUNT_UP.pick(rng, held).format(a=low, b=high)
    return text, ", ".join(map(str, numbers)) + "."


def _echoed(rng: random.Random) -> str:
    draw = rng.random()
    if draw < 0.2:
        return words.code(rng)
    if draw < 0.35:
        return " ".join(str(rng.randint(0, 999)) for _ in range(rng.randint(1, 5)))
    text = words.phrase(rng, 1, 8) if rng.random() < 0.6 else words.phrase(rng, 8, 24)
    if draw < 0.65:
        return text
    text = " ".join(word.capitalize() if rng.random() < 0.3 else word for word in text.split())
    endings = ("", ".", "!", "?", f", {words.person(rng)}!", f" {rng.randint(0, 99)}")
    return text[0].upper() + text[1:] + rng.choice(endings)


def copying(rng: random.Random, held: bool) -> Example:
    """A text of mostly invented words to repeat: nothing but copying helps here."""
    count = rng.choice((1, 2, 3, 5, 8, 12, 16))
    text = " ".join(words.invented(rng) if rng.random() < 0.6 else words.some_word(rng) for _ in range(count))
    return exchange("counting and repeating", _ECHO.pick(rng, held).format(x=text), text)


def repeat(rng: random.Random, held: bool) -> Example:
    """Count, say a word so many times, echo a text, or recite a list."""
    draw = rng.random()
    if draw < 0.3:
        text, answer = _count(rng, held)
    elif draw < 0.5:
        word = rng.choice(_GREETINGS) if rng.random() < 0.15 else words.some_word(rng)
        times = rng.randint(2, 10 if rng.random() < 0.8 else 20)
        shown = str(times) if rng.random() < 0.5 else number_word(times)
        text, answer = _SAY.pick(rng, held).format(x=word, t=shown), ", ".join([word] * times) + "."
    elif draw < 0.9:
        answer = _echoed(rng)
        text = _ECHO.pick(rng, held).format(x=answer)
    else:
        asked, items = rng.choice(_LISTS)
        text, answer = asked.pick(rng, held), ", ".join(items) + "."
    return exchange("counting and repeating", text, answer)
