from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ember.front.text.stop import StopStrings, _Search

ALPHABET = "ab\nc"


def naive(text: str, stop: list[str], include: bool) -> tuple[str, str | None]:
    """Read character by character; the text ends where it first ends in a stop string, the longest of them."""
    for end in range(1, len(text) + 1):
        ended = [one for one in stop if text[:end].endswith(one)]
        if ended:
            longest = max(ended, key=len)
            return text[: end if include else end - len(longest)], longest
    return text, None


def may_still_begin(text: str, stop: list[str]) -> int:
    """Length of the longest suffix that is a proper prefix of a stop string."""
    prefixes = [one[:size] for one in stop for size in range(1, len(one))]
    return max((len(prefix) for prefix in prefixes if text.endswith(prefix)), default=0)


@settings(max_examples=1000, deadline=None)
@given(
    text=st.text(ALPHABET, max_size=25),
    stop=st.lists(st.text(ALPHABET, min_size=1, max_size=5), min_size=0, max_size=4),
    cuts=st.lists(st.integers(0, 25), max_size=8),
    include=st.booleans(),
)
@example(text="abcab", stop=["abc", "b"], cuts=[2], include=False)
@example(text="aab", stop=["ab", "aab", "b"], cuts=[1, 2], include=True)
@example(text="aaaaab", stop=["aaab"], cuts=[1, 2, 3, 4, 5], include=False)
def test_any_cutting_gives_what_a_reader_of_characters_sees(text, stop, cuts, include):
    expected, expected_match = naive(text, stop, include)
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    stops = StopStrings(stop, include)
    shown = ""
    matched = None
    for begin, end in pairwise(edges):
        new, match = stops.push(text[begin:end])
        if matched is not None:
            assert (new, match) == ("", matched)
            continue
        shown, matched = shown + new, match
        if matched is None:
            assert len(shown) == end - may_still_begin(text[:end], stop)  # nothing is held back without need
    assert matched == expected_match
    assert shown + stops.flush() == expected
    assert stops.flush() == ""


@pytest.mark.parametrize("include", [False, True])
def test_cut_inside_one_push(include):
    stops = StopStrings(["\nUser:"], include)
    assert stops.push("Fine.\nUser: and more") == ("Fine.\nUser:" if include else "Fine.", "\nUser:")
    assert stops.push("late") == ("", "\nUser:")
    assert stops.flush() == ""


def test_only_what_could_begin_is_held_back():
    stops = StopStrings(["</answer>"])
    assert stops.push("1 < 2 and a </ans") == ("1 < 2 and a ", None)
    assert stops.push("wers>") == ("</answers>", None)
    assert stops.push("<") == ("", None)
    assert stops.flush() == "<"


def test_a_complete_stop_string_does_not_wait_for_a_longer_one():
    assert StopStrings(["\n", "\n\n"]).push("a\n") == ("a", "\n")


def test_no_stop_strings():
    stops = StopStrings([])
    assert stops.push("text") == ("text", None)
    assert stops.flush() == ""


def test_a_long_stop_string_that_repeats_itself_costs_each_character_once():
    repeated = 20_000
    compared = 0

    class Counted(str):
        def __getitem__(self, key):
            nonlocal compared
            compared += 1
            return str.__getitem__(self, key)

    stops = StopStrings([])
    search = _Search(Counted("a" * repeated + "b"))
    stops._searches = [search]
    text = ("a" * repeated + "c") * 2 + "a" * repeated + "b"
    shown = ""
    matched = None
    for begin in range(0, len(text), 3):
        new, matched = stops.push(text[begin : begin + 3])
        shown += new
    assert matched == search.stop
    assert shown == ("a" * repeated + "c") * 2
    assert compared < 20 * len(text)
