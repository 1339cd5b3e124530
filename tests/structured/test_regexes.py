"""Sampled output of every regular expression is matched whole by Python's re, which the clients have."""

from __future__ import annotations

import re

import pytest

from ember.front.text.portable_regex import portable
from ember.wire import Generate, Grammar, SamplingParams
from tests.engine_core.inline import make_engine, run, tokens
from tests.structured.json_model import load

SAMPLES = 3
MAX_TOKENS = 60

REGEXES = [
    *(r"a+b{2}", r"^a$", r"^(?:a|b)$|^c$", r"a{,3}", r"a{2,}?b", r"(a|b)*?c", r"x*?y+?z??", r"a|b|", r"", r"a{0}b"),
    *(r'{"a": 1}', r"a{x}", r"}{", r"a|{b}", r"\{\}\(\)", r"[+*?{}]{2}", r"\<a\>", r"\"\'\/\-\ \#\@\:\_"),
    *(r"\d{3}-\d{4}", r"\D{1,4}", r"\w{2,5}", r"\W{2}", r"\s\S{1,3}\s", r"[\d\-a-f]{1,6}", r"[^\d\s]{1,5}"),
    *(r"[^\W\d]{1,4}", r"[\W]{1,3}", r"[^\D]{2}", r"[\s\S]{1,4}", r"[^\S]{1,2}"),
    *(r"[[]a", r"[]a]{1,3}", r"[^]a]{1,3}", r"[a\]b]+", r"[a&&b]{1,4}", r"[a~~b]{1,4}", r"[-a]{1,3}", r"[a-]{1,3}"),
    *(r"[\b]", r"[\t\n\x20]{2}", r"[!-/]{3}", r"[^\n]{3}", r"[\\/]{2}", r"['\"]{2}"),
    *(r".{1,5}", r"(?s:.{1,5})", r"(?s).{1,3}", r"\.\*\+\?", r"a.c"),
    *(r"\x41\u0041\t\n\r\f\v", r"é{1,2}[à-ü]", r"[äöü]{2}", r"日本?", r"(?i)straSSe", r"(?i:yes|no)", r"(?x) a  b # c"),
    *(r"(?P<year>\d{4})", r"(?:0|[1-9]\d*)\.(?:0|[1-9]\d*)", r"a\Z", r"\A\w{1,3}\Z", r'#\d+ - "x"/y'),
    *(r"((a|b){2}(c|d)?){1,3}", r"(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}\d"),
    *(
        r"[A-Z][a-z]{1,6} [A-Z]\.",
        r"(Mon|Tue|Wed), \d{1,2} [A-Z][a-z]{2}",
        r"https?://[a-z]{1,5}\.(de|fr)(/\w{0,3}){0,2}",
    ),
    *(r"-?(0|[1-9]\d{0,3})(\.\d{1,3})?([eE][+-]?\d{1,2})?", r"\$\d{1,3}(,\d{3})*\.\d{2}", r"(yes|no|maybe)( sir)?!"),
]

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # of re, about sets that newer dialects nest


@pytest.fixture(scope="module")
def outputs(directory):
    """By (number of the expression, sample): text and reason of the end."""
    tokenizer = load(directory)
    requests = []
    for number, regex in enumerate(REGEXES):
        grammar = Grammar("regex", portable(regex))
        sampling = SamplingParams(MAX_TOKENS, SAMPLES, temperature=1.0, seed=number, grammar=grammar)
        requests.append(Generate(number, [40 + number, 50, 60], sampling))
    engine = make_engine(directory, max_num_seqs=64, num_blocks=1024)
    made = run(engine, requests)
    return {
        key: (tokenizer.decode(tokens(parts)), parts[-1].finish_reason, parts[-1].error) for key, parts in made.items()
    }


def test_no_expression_is_refused(outputs):
    assert {error for _, _, error in outputs.values() if error is not None} == set()


def test_every_finished_output_matches(outputs):
    finished = {key: text for key, (text, reason, _) in outputs.items() if reason == "stop"}
    assert len(finished) > 0.9 * SAMPLES * len(REGEXES)
    wrong = {
        (REGEXES[number], text) for (number, _), text in finished.items() if re.fullmatch(REGEXES[number], text) is None
    }
    assert wrong == set()


@pytest.mark.parametrize("regex", ["a++", "a*+b", "a?+", "a{2}+", "a\0", "\\", "a\\", "(a\\\\)\\"])
def test_what_would_mean_something_else_is_refused(regex):
    with pytest.raises(ValueError, match="possessive|NUL|backslash at the end"):
        portable(regex)


@pytest.mark.parametrize("regex", [r"a(?=b)", r"(?<!a)b", r"(a)\1", r"\bword\b", r"a$b", "(a", "[a", "a)"])
def test_what_the_engine_cannot_do_is_left_for_it_to_refuse(directory, regex):
    engine = make_engine(directory)
    sampling = SamplingParams(5, grammar=Grammar("regex", portable(regex), "guided_regex"))
    (output,) = run(engine, [Generate(1, [40], sampling)])[1, 0]
    assert (output.finish_reason, output.error_param) == ("error", "guided_regex")
