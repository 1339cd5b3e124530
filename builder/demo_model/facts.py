"""Questions about facts: every table row becomes a fact with a relation, and every relation has many phrasings."""

from __future__ import annotations

import functools
import itertools
import random
from typing import NamedTuple

from builder.demo_model import fact_tables as tables
from builder.demo_model.chat import Example, Phrases, exchange
from builder.demo_model.fact_phrases import RELATIONS
from builder.demo_model.words import number_word
from builder.demo_model.world_table import COUNTRIES, spoken

_PREFIXES = ("Hi! ", "Hello, ", "Hey, ", "Question: ", "Quick question: ", "Please answer: ", "I wonder: ", "Hi. ")
_SUFFIXES = (" Thanks.", " Please.", " Thank you!", " Please tell me.", " I forgot.", " Answer in one sentence.")
_ONE_WORD = Phrases(
    (
        "In one word: {q}",
        "{q} Answer with the name only.",
        "{q} Only the answer, no sentence.",
        "{q} Give just the answer.",
        "Short answer only: {q}",
        "{q} Answer in one word.",
    ),
    ("{q} Just the answer please.", "One word only: {q}"),
)


class Fact(NamedTuple):
    """A thing the model knows: `x` (and `y`) fill the question of the relation, `answer` is the full sentence."""

    relation: str
    x: str
    value: str
    answer: str
    y: str = ""

    def question(self, rng: random.Random, held: bool) -> str:
        """The question in one phrasing."""
        text = RELATIONS[self.relation].pick(rng, held).format(x=self.x, y=self.y)
        return text[0].upper() + text[1:]


def _article(word: str) -> str:
    return f"an {word}" if word[0] in "aeio" else f"a {word}"


def _country_facts() -> list[Fact]:
    facts = []
    for row in COUNTRIES:
        name = spoken(row.name)
        upper = name[0].upper() + name[1:]
        facts.append(Fact("capital", name, row.capital, f"The capital of {name} is {row.capital}."))
        facts.append(Fact("capital_of", row.capital, row.name, f"{row.capital} is the capital of {name}."))
        facts.append(Fact("continent", name, row.continent, f"{upper} is in {row.continent}."))
        facts.append(Fact("currency", name, row.currency, f"The currency of {name} is the {row.currency}."))
    return facts


def _nature_facts() -> list[Fact]:
    facts = []
    for name, symbol in tables.ELEMENTS:
        facts.append(Fact("symbol", name, symbol, f"The chemical symbol of {name} is {symbol}."))
        facts.append(Fact("element", symbol, name, f"{symbol} is the chemical symbol of {name}."))
    for animal, young in tables.YOUNG:
        facts.append(Fact("young", _article(animal), young, f"A young {animal} is called {_article(young)}."))
    for animal, sound in tables.SOUNDS:
        facts.append(Fact("sound", _article(animal), sound, f"{_article(animal).capitalize()} {sound}."))
    for animal, legs in tables.LEGS:
        subject = _article(animal)
        facts.append(Fact("legs", subject, legs, f"{subject.capitalize()} has {legs} legs."))
    for thing, colour in tables.COLOURS:
        verb = "are" if thing.endswith("s") and thing != "grass" else "is"
        facts.append(Fact("colour", thing, colour, f"{thing[0].upper() + thing[1:]} {verb} {colour}."))
    for pair, colour in tables.MIXES:
        facts.append(Fact("mix", pair, colour, f"If you mix {pair}, you get {colour}."))
    for index, planet in enumerate(tables.PLANETS):
        place = tables.ORDINALS[index]
        facts.append(Fact("misc", f"the {place} planet from the Sun", planet, f"The {place} planet is {planet}."))
    return facts


def _word_facts() -> list[Fact]:
    facts = []
    for one, other in tables.OPPOSITES:
        facts.append(Fact("opposite", one, other, f"The opposite of {one} is {other}."))
        if other not in {"weightless", "end"}:
            facts.append(Fact("opposite", other, one, f"The opposite of {other} is {one}."))
    for one, many in tables.PLURALS:
        facts.append(Fact("plural", one, many, f"The plural of {one} is {many}."))
    for verb, past in tables.PASTS:
        facts.append(Fact("past", verb, past, f"The past tense of {verb} is {past}."))
    for value in range(101):
        word = number_word(value)
        facts.append(Fact("spell", str(value), word, f"{value} in words is {word}."))
        facts.append(Fact("digits", word, str(value), f"{word.capitalize()} in digits is {value}."))
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    for before, after in itertools.pairwise(letters):
        facts.append(Fact("letter_after", before, after, f"The letter after {before} is {after}."))
        facts.append(Fact("letter_before", after, before, f"The letter before {after} is {before}."))
    return facts


def _time_facts() -> list[Fact]:
    facts = []
    count = len(tables.MONTHS)
    for index, (month, days) in enumerate(tables.MONTHS):
        after = tables.MONTHS[(index + 1) % count][0]
        before = tables.MONTHS[index - 1][0]
        place = tables.ORDINALS[index]
        facts.append(Fact("after", month, after, f"{after} comes after {month}.", "month"))
        facts.append(Fact("before", month, before, f"{before} comes before {month}.", "month"))
        facts.append(Fact("month_days", month, str(days), f"{month} has {days} days."))
        facts.append(Fact("misc", f"the {place} month of the year", month, f"The {place} month is {month}."))
    for index, day in enumerate(tables.WEEKDAYS):
        after, before = tables.WEEKDAYS[(index + 1) % 7], tables.WEEKDAYS[index - 1]
        facts.append(Fact("after", day, after, f"{after} comes after {day}.", "day"))
        facts.append(Fact("before", day, before, f"{before} comes before {day}.", "day"))
    for event, answer in tables.YEARS:
        facts.append(Fact("year", event, answer.rstrip(".").rsplit(" ", 1)[1], answer))
    for holiday, date in tables.HOLIDAYS:
        facts.append(Fact("holiday", holiday, date, f"{holiday} is on {date}."))
    return facts


def _other_facts() -> list[Fact]:
    facts = []
    for deed, name in tables.WHO:
        facts.append(Fact("who", deed, name, f"{name} {deed}."))
    for question, answer in tables.COUNTS:
        what, where = question.removeprefix("How many ").rstrip("?").split(" are ", 1)
        facts.append(Fact("count", what, answer.split()[2], answer, where))
    for question, answer in tables.MISC:
        thing = question.removeprefix("What is ").rstrip("?")
        value = answer.rstrip(".").split(" is ", 1)[1]
        facts.append(Fact("misc", thing, value, answer))
    return facts


@functools.cache
def all_facts() -> tuple[Fact, ...]:
    """Every fact once, a subject asked of one relation having one answer."""
    facts = [*_country_facts(), *_nature_facts(), *_word_facts(), *_time_facts(), *_other_facts()]
    seen: set[tuple[str, str, str]] = set()
    unique = []
    for fact in facts:
        key = (fact.relation, fact.x, fact.y)
        if key not in seen:
            seen.add(key)
            unique.append(fact)
    return tuple(unique)


@functools.cache
def _weighted() -> tuple[tuple[Fact, ...], tuple[float, ...]]:
    weights = {"capital": 3.0, "capital_of": 1.5, "currency": 1.5, "year": 1.5, "who": 1.5, "young": 1.3, "misc": 1.3}
    facts = all_facts()
    return facts, tuple(weights.get(fact.relation, 1.0) for fact in facts)


def draw(rng: random.Random) -> Fact:
    """A random fact; the relations that are hardest to remember come more often."""
    facts, weights = _weighted()
    return rng.choices(facts, weights)[0]


def of_relation(rng: random.Random, relation: str) -> Fact:
    """A random fact of one relation."""
    return rng.choice([fact for fact in all_facts() if fact.relation == relation])


def polite(rng: random.Random, text: str) -> str:
    """The text with a greeting before it or a word of thanks after it."""
    return rng.choice(_PREFIXES) + text if rng.random() < 0.5 else text + rng.choice(_SUFFIXES)


def dress(rng: random.Random, text: str) -> str:
    """The text as people type it: with a greeting, without its punctuation, in lower case."""
    pick = rng.random()
    if pick < 0.22:
        text = polite(rng, text)
    elif pick < 0.27:
        text = text.rstrip("?.")
    return text.lower() if rng.random() < 0.06 else text


def think_about(rng: random.Random, fact: Fact) -> str:
    """A short thought that recalls the value before the answer."""
    asked = {
        "capital": f"the capital of {fact.x}",
        "currency": f"the currency of {fact.x}",
        "continent": f"the continent of {fact.x}",
        "opposite": f"the opposite of {fact.x}",
        "symbol": f"the chemical symbol of {fact.x}",
        "colour": f"the colour of {fact.x}",
        "year": "the year of an event",
    }.get(fact.relation, "a fact")
    return f"The user asks for {asked}. I remember: {fact.value}."


def fact_example(rng: random.Random, held: bool, fact: Fact | None = None) -> Example:
    """One question about a fact."""
    fact = fact or draw(rng)
    question = fact.question(rng, held)
    if held:
        return exchange("facts", question, fact.answer)
    if rng.random() < 0.06:
        return exchange("facts", _ONE_WORD.pick(rng, False).format(q=question), fact.value)
    question = dress(rng, question)
    reasoning = think_about(rng, fact) if rng.random() < 0.1 else ""
    return exchange("facts", question, fact.answer, reasoning)


def thinking_fact(rng: random.Random, held: bool) -> Example:
    """One question about a fact, answered after a thought."""
    fact = draw(rng)
    return exchange("thinking", fact.question(rng, held), fact.answer, think_about(rng, fact))
