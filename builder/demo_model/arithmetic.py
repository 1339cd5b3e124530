"""Small sums: addition and subtraction of one- and two-digit numbers, multiplication of one-digit numbers.

A fixed part of the two-digit problems is never trained, so the evaluation sees whether the model calculates or
only remembers.
"""

from __future__ import annotations

import random

from builder.demo_model.chat import Example, Phrases, exchange, phrases
from builder.demo_model.facts import dress

_ANY = phrases(
    """
    What is {a} {s} {b}?
    What is {a} {w} {b}?
    What's {a} {s} {b}?
    {a} {s} {b} = ?
    {a} {s} {b}
    Calculate {a} {s} {b}.
    How much is {a} {w} {b}?
    How much is {a} {s} {b}?
    Compute {a} {s} {b}.
    Tell me {a} {w} {b}.
    Work out {a} {s} {b}.
    Please calculate {a} {w} {b}.
    Can you tell me what {a} {s} {b} is?
    """,
    """
    Please calculate {a} {s} {b}.
    Can you tell me what {a} {w} {b} is?
    Tell me {a} {s} {b}.
    Compute {a} {w} {b}.
    """,
)
_OWN = {
    "+": phrases(
        "Add {a} and {b}.\nWhat is the sum of {a} and {b}?\nIf I add {b} to {a}, what do I get?",
        "Tell me the sum of {a} and {b}.",
    ),
    "-": phrases(
        "Subtract {b} from {a}.\nTake {b} away from {a}.\nWhat is the difference between {a} and {b}?",
        "What do I get if I subtract {b} from {a}?",
    ),
    "*": phrases(
        "Multiply {a} by {b}.\nMultiply {a} and {b}.\nWhat is the product of {a} and {b}?",
        "Tell me the product of {a} and {b}.",
    ),
}
_WORDS = {"+": ("plus",), "-": ("minus",), "*": ("times", "multiplied by")}


def is_kept_back(a: int, b: int) -> bool:
    """Whether a two-digit problem is left to the evaluation."""
    return max(a, b) > 9 and (a * 31 + b * 17) % 23 == 0


def problem(rng: random.Random, held: bool) -> tuple[int, str, int]:
    """A random problem; with `held`, a two-digit one may be of the part kept back."""
    while True:
        sign = rng.choices("+-*", (5, 5, 2))[0]
        if sign == "*":
            return rng.randint(0, 10), sign, rng.randint(0, 10)
        top = 9 if rng.random() < 0.15 else 99
        a, b = rng.randint(0, top), rng.randint(0, 99 if rng.random() < 0.8 else 9)
        if top == 9:
            b %= 10
        if sign == "-" and b > a:
            a, b = b, a
        if held or not is_kept_back(a, b):
            return a, sign, b


def result(a: int, sign: str, b: int) -> int:
    """The value of a problem."""
    return a + b if sign == "+" else a - b if sign == "-" else a * b


def steps(a: int, sign: str, b: int) -> str:
    """The written method, digit by digit: what the model thinks before it answers."""
    value = result(a, sign, b)
    if sign == "*":
        return f"{a} times {b} is {value}."
    (ta, ua), (tb, ub) = divmod(a, 10), divmod(b, 10)
    if sign == "+":
        units = ua + ub
        carry = units // 10
        note = f"Ones: {ua} + {ub} = {units}, carry {carry}. "
        return note + f"Tens: {ta} + {tb} + {carry} = {ta + tb + carry}. Result: {value}."
    borrow = int(ua < ub)
    note = f"Ones: {ua + 10 * borrow} - {ub} = {ua + 10 * borrow - ub}, borrow {borrow}. "
    return note + f"Tens: {ta} - {tb} - {borrow} = {ta - tb - borrow}. Result: {value}."


def question(rng: random.Random, held: bool, a: int, sign: str, b: int) -> str:
    """The problem in one phrasing."""
    pool: Phrases = _OWN[sign] if rng.random() < 0.25 else _ANY
    shown = rng.choice(("*", "*", "x", "×")) if sign == "*" else sign
    return pool.pick(rng, held).format(a=a, b=b, s=shown, w=rng.choice(_WORDS[sign]))


def _example(rng: random.Random, held: bool, thinking: bool) -> Example:
    a, sign, b = problem(rng, held)
    text = question(rng, held, a, sign, b)
    if not held and rng.random() < 0.3:
        text = dress(rng, text)
    answer = f"{a} {sign} {b} = {result(a, sign, b)}."
    example = exchange("arithmetic", text, answer, steps(a, sign, b) if thinking else "")
    example.notes = {"kept_back": is_kept_back(a, b)}
    return example


def arithmetic(rng: random.Random, held: bool) -> Example:
    """A sum answered directly, or one time in six after its steps."""
    return _example(rng, held, not held and rng.random() < 0.17)


def thinking_arithmetic(rng: random.Random, held: bool) -> Example:
    """A sum answered after its steps."""
    example = _example(rng, held, True)
    example.kind = "thinking"
    return example
