"""Conversations: greetings, follow-up questions, things the user said earlier, and honest refusals."""

from __future__ import annotations

import random

from builder.demo_model import words
from builder.demo_model.arithmetic import arithmetic
from builder.demo_model.chat import Example, Message, assistant, exchange, phrases, user
from builder.demo_model.facts import all_facts, dress, fact_example, of_relation
from builder.demo_model.smalltalk import DONT_KNOW, SMALL_TALK, UNKNOWN

_FOLLOW = phrases(
    """
    And of {x}?
    and of {x}?
    And {x}?
    What about {x}?
    How about {x}?
    And what about {x}?
    And for {x}?
    The same for {x}?
    and {x}
    Now {x}.
    """,
    """
    And how about {x}?
    and what about {x}?
    Okay, and {x}?
    """,
)
_SWITCH = {
    "capital": phrases(
        "And its capital?\nWhat is its capital?\nWhat is the capital?\nAnd the capital?\nWhich city is its capital?",
        "And what is its capital?",
    ),
    "currency": phrases(
        "And its currency?\nWhat is its currency?\nWhich currency does it use?\nAnd the currency?",
        "And what is its currency?",
    ),
    "continent": phrases(
        "And its continent?\nWhich continent is it in?\nOn which continent is it?\nAnd the continent?",
        "And which continent is it in?",
    ),
}
_CHAINED = ("capital", "capital", "capital", "currency", "continent", "opposite", "symbol", "young", "colour", "spell")


def follow_up(rng: random.Random, held: bool) -> Example:
    """A question and then the same one about something else, in a few words."""
    relation = rng.choice(_CHAINED)
    first = of_relation(rng, relation)
    messages: list[Message] = [user(first.question(rng, False)), assistant(first.answer)]
    for _ in range(1 if held else rng.choice((1, 1, 2))):
        fact = of_relation(rng, relation)
        text = _FOLLOW.pick(rng, held).format(x=fact.x)
        messages += [user(text), assistant(fact.answer)]
    return Example("multi-turn", messages)


def switch(rng: random.Random, held: bool) -> Example:
    """Another question about the country of the question before."""
    first_relation, second_relation = rng.sample(sorted(_SWITCH), 2)
    first = of_relation(rng, first_relation)
    second = next(f for f in all_facts() if f.relation == second_relation and f.x == first.x)
    messages: list[Message] = [user(first.question(rng, False)), assistant(first.answer)]
    messages += [user(_SWITCH[second_relation].pick(rng, held)), assistant(second.answer)]
    return Example("multi-turn", messages)


def _filler(rng: random.Random) -> list[Message]:
    draw = rng.random()
    if draw < 0.5:
        example = fact_example(rng, False)
    elif draw < 0.75:
        example = arithmetic(rng, False)
    else:
        example = small_talk(rng, False)
    example.messages[-1].pop("reasoning_content", None)
    return example.messages


_NAME_TOLD = (
    "My name is {n}.",
    "I am {n}.",
    "Hi, my name is {n}.",
    "Hello, I am {n}.",
    "Hi, I'm {n}.",
    "Call me {n}.",
    "Hello! My name is {n}.",
    "Hi there, I am {n}.",
)
_NAME_ASKED = phrases(
    """
    What is my name?
    What's my name?
    Do you remember my name?
    Who am I?
    Can you tell me my name?
    Tell me my name.
    Do you know my name?
    """,
    "Please tell me my name.\nDo you still remember my name?\nDo you know what my name is?",
)


def remember_name(rng: random.Random, held: bool) -> Example:
    """The user's name, told and later asked for."""
    name = words.person(rng)
    messages = [user(rng.choice(_NAME_TOLD).format(n=name)), assistant(f"Nice to meet you, {name}!")]
    for _ in range(rng.choice((0, 1, 1, 2))):
        messages += _filler(rng)
    messages += [user(_NAME_ASKED.pick(rng, held)), assistant(f"Your name is {name}.")]
    return Example("multi-turn", messages)


def remember_thing(rng: random.Random, held: bool) -> Example:
    """Something about the user, told and later asked for."""
    key, value = rng.choice(
        (
            ("favourite colour", rng.choice(words.COLOUR_WORDS)),
            ("favourite food", rng.choice(words.FOODS)),
            ("favourite number", str(rng.randint(0, 999))),
            ("lucky number", str(rng.randint(0, 99))),
            ("favourite city", words.city(rng)),
            ("home town", words.city(rng)),
            ("hobby", rng.choice(words.HOBBIES)),
            ("job", rng.choice(words.JOBS)),
            ("code word", words.some_word(rng)),
            ("secret word", words.some_word(rng)),
            ("booking code", words.code(rng)),
            ("dog's name", words.person(rng)),
            ("cat's name", words.person(rng)),
            ("age", str(rng.randint(3, 99))),
        )
    )
    told = rng.choice(
        (
            "My {k} is {v}.",
            "Remember this: my {k} is {v}.",
            "Please remember that my {k} is {v}.",
            "By the way, my {k} is {v}.",
        )
    )
    asked = phrases(
        "What is my {k}?\nWhat's my {k}?\nDo you remember my {k}?\nTell me my {k}.\nWhat was my {k}?\nAnd my {k}?",
        "Please tell me my {k}.\nCan you tell me my {k}?",
    )
    answer = "I will remember that your {k} is {v}."
    messages = [user(told.format(k=key, v=value)), assistant(answer.format(k=key, v=value))]
    for _ in range(rng.choice((0, 1, 1, 2))):
        messages += _filler(rng)
    messages += [user(asked.pick(rng, held).format(k=key)), assistant(f"Your {key} is {value}.")]
    return Example("multi-turn", messages)


def small_talk(rng: random.Random, held: bool) -> Example:
    """A greeting, a thank-you, or a question about the model itself."""
    kind = rng.choice(SMALL_TALK)
    return exchange("small talk", kind.asked.pick(rng, held), rng.choice(kind.answers))


def unknown(rng: random.Random, held: bool) -> Example:
    """A question that the model has no answer to, and says so."""
    text = UNKNOWN.pick(rng, held).format(
        w=words.some_word(rng), n=words.person(rng), c=words.invented(rng).capitalize(), p=words.phrase(rng)
    )
    return exchange("unknown", dress(rng, text), DONT_KNOW)


def several(rng: random.Random, held: bool) -> Example:
    """Several unrelated questions in one conversation."""
    messages: list[Message] = []
    for _ in range(rng.randint(2, 4)):
        messages += _filler(rng)
    last = fact_example(rng, True) if held else fact_example(rng, False)
    last.messages[-1].pop("reasoning_content", None)
    return Example("multi-turn", messages + last.messages)


def multi_turn(rng: random.Random, held: bool) -> Example:
    """Any conversation of more than one turn."""
    pick = rng.choices((follow_up, switch, remember_name, remember_thing, several), (4, 2, 2, 3, 2))[0]
    return pick(rng, held)
