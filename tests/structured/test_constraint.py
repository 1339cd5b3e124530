"""One sample's path through reasoning and its grammar, token by token."""

import numpy as np
import pytest

from ember.engine.core.grammars.constraint import Constraint, State
from ember.engine.core.grammars.workers import GrammarWorkers
from ember.engine.errors import GrammarError
from ember.wire import Grammar, SamplingParams, Thinking
from tests.structured.json_model import END_THINK, EOS, NUM_ROWS, THINK, load
from tests.structured.waiting import catch_up, matcher_of


@pytest.fixture(scope="module")
def tokenizer(directory):
    return load(directory)


@pytest.fixture(scope="module")
def ids(tokenizer):
    """The markers' token ids by name."""
    return {name: tokenizer.token_id(name) for name in (EOS, THINK, END_THINK)}


@pytest.fixture(scope="module")
def make(directory, ids):
    """Builds a constraint; `grammar` is a regular expression."""
    workers = GrammarWorkers(directory, NUM_ROWS, [ids[EOS]])
    matcher_of(workers, Grammar("regex", "a")).close()  # from now on it is known how wide masks are

    def build(grammar: str | None = None, thinking: Thinking | None = None, **params) -> Constraint:
        matcher = matcher_of(workers, Grammar("regex", grammar)) if grammar is not None else None
        wire_grammar = Grammar("regex", grammar, param="guided_regex") if grammar is not None else None
        sampling = SamplingParams(max_tokens=100, grammar=wire_grammar, thinking=thinking, **params)
        return Constraint(sampling, matcher, [ids[EOS]], workers.num_words)

    return build


def settle(constraint: Constraint) -> None:
    if constraint.matcher is not None:
        catch_up(constraint.matcher.pool, constraint)


def allowed(constraint: Constraint) -> set[int]:
    """The tokens that may follow, by the mask; all where none is needed."""
    if not constraint.needs_mask:
        return set(range(NUM_ROWS))
    bits = np.full(constraint.num_words, -1, dtype=np.int32)
    settle(constraint)
    constraint.fill(bits)
    return set(np.nonzero(np.unpackbits(bits.view(np.uint8), bitorder="little")[:NUM_ROWS])[0].tolist())


def advance(constraint: Constraint, *token_ids: int) -> None:
    """Each token must be among the allowed ones."""
    for token_id in token_ids:
        assert token_id in allowed(constraint)
        constraint.advance([token_id])
    settle(constraint)


def test_a_grammar_from_the_first_token(make, tokenizer, ids):
    a, b = tokenizer.encode("a"), tokenizer.encode("b")
    constraint = make("a(a|b)?")
    assert constraint.param == "guided_regex"
    assert allowed(constraint) == {*a, tokenizer.token_id("ab")}
    advance(constraint, *a)
    assert allowed(constraint) == {*a, *b, ids[EOS]} and not constraint.is_complete
    advance(constraint, *b)
    assert constraint.is_complete


def test_ignore_eos_goes_on_while_the_grammar_lets_it(make, tokenizer, ids):
    constraint = make("a*", ignore_eos=True)
    assert ids[EOS] in allowed(make("a*"))
    assert allowed(constraint) == set(tokenizer.encode("a"))


def test_a_token_that_the_grammar_forbids_is_an_error_of_the_request(make, tokenizer):
    constraint = make("aa")
    with pytest.raises(GrammarError, match="other options of the request"):
        constraint.advance([tokenizer.encode("b")[0]])
        settle(constraint)


def first_of_word(tokenizer) -> set[int]:
    """What may begin a word of `(a|c)b`."""
    return {tokenizer.token_id("ab"), *tokenizer.encode("a"), *tokenizer.encode("c")}


def test_reasoning_that_the_prompt_began_then_the_grammar(make, tokenizer, ids):
    thinking = Thinking(end_token_ids=[[ids[END_THINK]]], is_open=True)
    constraint = make("(a|c)b", thinking, stop_token_ids=[7])
    everything = set(range(NUM_ROWS))
    assert allowed(constraint) == everything - {ids[EOS], 7}  # an end here would never come to the grammar
    advance(constraint, 1, 2, 3)
    assert constraint.state is State.REASONING and not constraint.is_complete
    advance(constraint, ids[END_THINK])
    assert allowed(constraint) == first_of_word(tokenizer)
    advance(constraint, tokenizer.token_id("ab"))
    assert constraint.is_complete


def test_an_ending_of_several_tokens_in_any_spelling(make, tokenizer, ids):
    endings = [[10, 11], [20, 10, 12]]
    for ending in endings:
        constraint = make("(a|c)b", Thinking(end_token_ids=endings, is_open=True))
        advance(constraint, 10, 10, 20, *ending[:-1])
        assert constraint.state is State.REASONING
        advance(constraint, ending[-1])
        assert constraint.state is State.ANSWER


def test_the_blank_lines_of_a_template_come_before_the_grammar(make, tokenizer, ids):
    gap = tokenizer.encode("\n\n")
    constraint = make("(a|c)b", Thinking(end_token_ids=[[ids[END_THINK]]], is_open=True, gap_token_ids=gap))
    advance(constraint, 1, ids[END_THINK])
    assert allowed(constraint) == {gap[0]} and not constraint.is_complete
    advance(constraint, *gap)
    assert allowed(constraint) == first_of_word(tokenizer)


def test_the_model_may_begin_its_reasoning_itself_or_not(make, tokenizer, ids):
    thinking = Thinking(end_token_ids=[[ids[END_THINK]]], start_token_ids=[ids[THINK], 9])
    constraint = make("(a|c)b", thinking)
    first = first_of_word(tokenizer)
    assert constraint.state is State.UNDECIDED and allowed(constraint) == first | {ids[THINK]}
    advance(constraint, ids[THINK])
    assert allowed(constraint) == {9}  # the rest of the marker
    advance(constraint, 9, 50, 60, ids[END_THINK])
    assert allowed(constraint) == first

    constraint = make("(a|c)b", thinking)
    advance(constraint, *tokenizer.encode("a"))
    assert constraint.state is State.ANSWER and allowed(constraint) == set(tokenizer.encode("b"))


def test_reasoning_that_the_prompt_ended_does_not_begin_again(make, ids):
    thinking = Thinking([[ids[END_THINK]]], start_token_ids=[ids[THINK]], is_over=True)
    constraint = make("(a|c)b", thinking)
    assert constraint.state is State.ANSWER
    with pytest.raises(GrammarError):
        constraint.advance([ids[THINK]])
        settle(constraint)


@pytest.mark.parametrize("grammar", [None, "ab"])
def test_a_budget_ends_the_reasoning(make, ids, grammar):
    thinking = Thinking(end_token_ids=[[ids[END_THINK]]], is_open=True, budget=3)
    constraint = make(grammar, thinking)
    advance(constraint, 1, 2)
    assert len(allowed(constraint)) > 100
    advance(constraint, 3)
    assert allowed(constraint) == {ids[END_THINK]}
    advance(constraint, ids[END_THINK])
    assert constraint.state is State.ANSWER
    assert constraint.param == ("guided_regex" if grammar else "thinking_token_budget")


def test_a_budget_of_nothing_and_a_text_of_its_own_at_the_end(make, ids):
    forced = [30, 31, ids[END_THINK]]
    constraint = make("(a|c)b", Thinking([[ids[END_THINK]]], is_open=True, budget=0, forced_token_ids=forced))
    advance(constraint, *forced)
    assert constraint.state is State.ANSWER

    constraint = make("(a|c)b", Thinking([[ids[END_THINK]]], is_open=True, budget=2, gap_token_ids=[40]))
    advance(constraint, 1, 2)
    for token_id in (ids[END_THINK], 40):
        assert allowed(constraint) == {token_id}
        constraint.advance([token_id])
    assert constraint.state is State.ANSWER


def test_an_end_before_the_budget_is_free_and_a_second_reasoning_has_what_is_left(make, ids):
    thinking = Thinking([[ids[END_THINK]]], start_token_ids=[ids[THINK]], budget=3)
    constraint = make(None, thinking)
    advance(constraint, 1, ids[THINK], 2, ids[END_THINK], 5, 6, 7, 8, ids[THINK], 3, 4)
    assert allowed(constraint) == {ids[END_THINK]}


def test_a_forced_token_that_did_not_come_is_an_error(make, ids):
    constraint = make(None, Thinking([[ids[END_THINK]]], is_open=True, budget=0))
    with pytest.raises(GrammarError, match="other options of the request"):
        constraint.advance([1])


def test_the_begin_of_a_call_ends_the_reasoning_and_is_the_grammars_own(make, tokenizer, ids):
    a, b = tokenizer.encode("a"), tokenizer.encode("b")
    thinking = Thinking([[ids[END_THINK]]], is_open=True, break_token_ids=[a], gap_token_ids=[40])
    constraint = make("ab", thinking)
    advance(constraint, 1, 2, *a)
    assert constraint.state is State.ANSWER and allowed(constraint) == set(b)
    advance(constraint, *b)
    assert constraint.is_complete


def test_a_call_that_the_grammar_does_not_have_cannot_end_the_reasoning(make, tokenizer, ids):
    a, c = tokenizer.encode("a"), tokenizer.encode("c")
    thinking = Thinking([[ids[END_THINK]]], is_open=True, break_token_ids=[a, [*c, 9], [5, 6]])
    constraint = make("(c|x)b", thinking)
    assert a[0] not in allowed(constraint) and {c[0], 5, 6} <= allowed(constraint)
    advance(constraint, c[0])
    assert 9 not in allowed(constraint)
    advance(constraint, 5)
    assert not {6, a[0]} & allowed(constraint)
    advance(constraint, 7, 6)
    assert constraint.state is State.REASONING


def test_a_budget_does_not_end_a_call(make, ids):
    thinking = Thinking([[ids[END_THINK]]], is_open=True, budget=3, break_token_ids=[[8, 9]])
    constraint = make(None, thinking)
    advance(constraint, 1, 8, 9, 2, 3, 4, 5)
    assert constraint.state is State.ANSWER and not constraint.needs_mask


def test_several_tokens_at_once_are_as_many_one_by_one(make, tokenizer, ids):
    """Out of the reasoning and into the grammar in one step, as far as the last of them."""
    thinking = Thinking([[ids[END_THINK]]], is_open=True)
    inside = tokenizer.encode("so")
    for said, left in (([*inside, ids[END_THINK]], "aab"), ([*inside, ids[END_THINK], *tokenizer.encode("a")], "ab")):
        constraint = make("aab", thinking)
        constraint.advance(said)
        settle(constraint)
        assert constraint.state is State.ANSWER
        advance(constraint, *tokenizer.encode(left))
        assert constraint.is_complete
    constraint = make("aab")
    constraint.advance([token_id for letter in "aab" for token_id in tokenizer.encode(letter)])
    settle(constraint)
    assert constraint.is_complete
    constraint = make("aab")
    with pytest.raises(GrammarError):
        constraint.advance([token_id for letter in "aba" for token_id in tokenizer.encode(letter)])
        settle(constraint)
