"""One sample from token ids to text, whatever way the engine cuts its outputs."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ember.front.api.samples import Piece, Sample, TextOptions
from ember.front.text.tokenizer import Tokenizer
from ember.wire import SequenceOutput

SOME = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def run(tokenizer: Tokenizer, token_ids: list[int], cuts: list[int], options: TextOptions, reason: str) -> list[Piece]:
    sample = Sample(0, tokenizer, [], options)
    pieces = []
    bounds = sorted({0, len(token_ids), *(cut % (len(token_ids) + 1) for cut in cuts)})
    for start, end in pairwise(bounds):
        piece = Piece(0)
        is_last = end == len(token_ids)
        sample.push(SequenceOutput(1, 0, token_ids[start:end], reason if is_last else None), piece)
        pieces.append(piece)
    assert sample.num_tokens == sum(len(piece.token_ids) for piece in pieces), "what counts is what is shown"
    return pieces


@SOME
@given(
    text=st.text(alphabet="abc", min_size=1, max_size=30),
    stop=st.lists(st.text(alphabet="abc", min_size=1, max_size=3), max_size=3),
    cuts=st.lists(st.integers(0, 100), max_size=6),
    include=st.booleans(),
)
def test_stop_strings_cut_the_text_at_the_first_one(
    tokenizer: Tokenizer, text: str, stop: list[str], cuts: list[int], include: bool
) -> None:
    options = TextOptions(stop=stop, include_stop=include)
    pieces = run(tokenizer, tokenizer.encode(text, False), cuts, options, "length")
    ends = [(text.find(word) + len(word), text.find(word), word) for word in stop if word in text]
    finish_reasons = [piece.finish_reason for piece in pieces if piece.finish_reason is not None]
    if not ends:
        assert "".join(piece.text for piece in pieces) == text
        assert finish_reasons == ["length"]
        return
    end, start, word = min(ends)
    assert "".join(piece.text for piece in pieces) == text[: end if include else start]
    assert finish_reasons == ["stop"]
    assert [piece.stop_reason for piece in pieces if piece.stop_reason] == [word]
    assert tokenizer.decode([token for piece in pieces for token in piece.token_ids]) == text[:end]


@SOME
@given(
    text=st.text(alphabet="ab", min_size=1, max_size=20),
    min_tokens=st.integers(0, 25),
    cuts=st.lists(st.integers(0, 100), max_size=6),
)
def test_before_min_tokens_a_stop_string_is_plain_text(
    tokenizer: Tokenizer, text: str, min_tokens: int, cuts: list[int]
) -> None:
    token_ids = tokenizer.encode(text, False)
    assert len(token_ids) == len(text)
    pieces = run(tokenizer, token_ids, cuts, TextOptions(stop=["b"], min_tokens=min_tokens), "length")
    place = text.find("b", min_tokens)
    assert "".join(piece.text for piece in pieces) == (text if place < 0 else text[:place])


@SOME
@given(token_ids=st.lists(st.integers(0, 300), min_size=1), cuts=st.lists(st.integers(0, 200), max_size=8))
def test_any_tokens_give_the_text_of_the_whole(tokenizer: Tokenizer, token_ids: list[int], cuts: list[int]) -> None:
    for options in (TextOptions(), TextOptions(stop=["\0never\0"]), TextOptions(skip_special_tokens=False)):
        pieces = run(tokenizer, token_ids, cuts, options, "length")
        text = "".join(piece.text for piece in pieces)
        assert text == tokenizer.decode(token_ids, skip_special_tokens=options.skip_special_tokens)


def test_a_stop_string_in_the_last_held_back_bytes_counts(tokenizer: Tokenizer) -> None:
    token_ids = tokenizer.encode("aé", False)[:-1]  # ends within a character
    (piece,) = run(tokenizer, token_ids, [], TextOptions(stop=["\ufffd"]), "length")
    assert (piece.text, piece.finish_reason, piece.stop_reason) == ("a", "stop", "\ufffd")


def test_only_the_token_that_ended_the_sample_is_hidden(tokenizer: Tokenizer) -> None:
    token_ids = tokenizer.encode("ab", False)
    end = frozenset({token_ids[-1]})
    for reason, text in (("stop", "a"), ("length", "ab")):
        (piece,) = run(tokenizer, token_ids, [], TextOptions(end_token_ids=end), reason)
        assert piece.text == text
        assert piece.token_ids == token_ids
    (piece,) = run(tokenizer, token_ids, [], TextOptions(), "stop")
    assert piece.text == "ab", "an engine that leaves the end token out loses nothing"


def test_the_tokenizers_own_end_token_is_no_stop_reason_unless_it_was_asked_for(tokenizer: Tokenizer) -> None:
    end = tokenizer.eos_token_id
    assert end is not None
    for asked, expected in ((frozenset[int](), None), (frozenset({end}), end)):
        piece = Piece(0)
        options = TextOptions(end_token_ids=frozenset({end}), stop_token_ids=asked)
        Sample(0, tokenizer, [], options).push(SequenceOutput(1, 0, [end], "stop", stop_reason=end), piece)
        assert (piece.finish_reason, piece.stop_reason) == ("stop", expected)


def test_a_finished_sample_takes_nothing_more(tokenizer: Tokenizer) -> None:
    token_ids = tokenizer.encode("abcde", False)
    sample, piece = Sample(0, tokenizer, [], TextOptions(stop=["bc"])), Piece(0)
    sample.push(SequenceOutput(1, 0, token_ids), piece)
    assert (piece.text, piece.token_ids, sample.num_tokens) == ("a", token_ids[:3], 3)
    late = Piece(0)
    sample.push(SequenceOutput(1, 0, token_ids, "length"), late)
    sample.push(SequenceOutput(1, 0, [], "error", error="too late to matter"), late)
    assert late == Piece(0)
    assert sample.num_tokens == 3


def test_a_sample_without_a_token(tokenizer: Tokenizer) -> None:
    for options in (TextOptions(), TextOptions(stop=["x"])):
        piece = Piece(0)
        Sample(0, tokenizer, [], options).push(SequenceOutput(1, 0, [], "length"), piece)
        assert piece == Piece(0, finish_reason="length")
