"""How templates take tool calls of earlier turns: tried on shipped forms, each written to a family's format."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ember.front.api.messages import prepare_messages
from ember.front.text.call_history import HistoryForm, IdForm, with_ids
from ember.front.text.template import ChatTemplate
from ember.front.text.template_error import TemplateError
from ember.front.text.untrusted import UntrustedTemplate

LONG = "call_m7FqAoh6SiKZNA0Jwm"
ARGUMENTS = '{"city": "Zürich", "days": 3}'
HISTORY: list[dict[str, Any]] = [
    {"role": "user", "content": "Weather?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": LONG, "type": "function", "function": {"name": "weather", "arguments": ARGUMENTS}}],
    },
    {"role": "tool", "tool_call_id": LONG, "content": "21"},
]

# As the R1 distillations: calls only beside a null content, arguments concatenated as text.
DISTILLED = (
    "{%- for m in messages %}{%- if m['role'] == 'user' %}{{ '<U>' + m['content'] }}{%- endif %}"
    "{%- if m['role'] == 'assistant' and m['content'] is none %}{%- for t in m['tool_calls'] %}"
    "{{ '<C>' + t['type'] + '<S>' + t['function']['name'] + '\\n' + t['function']['arguments'] + '</C>' }}{%- endfor %}"
    "{%- endif %}{%- if m['role'] == 'assistant' and m['content'] is not none %}{{ '<A>' + m['content'] }}{%- endif %}"
    "{%- if m['role'] == 'tool' %}{{ '<R>' + m['content'] + '</R>' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<A>' }}{%- endif %}"
)
# As R1 of May 2025: text, beside any content.
R1 = (
    "{%- for m in messages %}{%- if m.tool_calls is defined and m.tool_calls is not none %}{%- for t in m.tool_calls %}"
    "{%- if m.content is none %}{{ '<C>' + t.function.name + t.function.arguments }}{%- else %}"
    "{{ m.content + '<C>' + t.function.name + t.function.arguments }}{%- endif %}{%- endfor %}{%- else %}"
    "{{ '<' + m.role + '>' + m.content }}{%- endif %}{%- endfor %}"
)
# Printed with `~`, which makes Python's text of an object instead of an error.
TILDE = (
    "{%- for m in messages %}{{ '<' ~ m.role ~ '>' ~ m.content }}{%- for t in m.tool_calls or [] %}"
    "{{ '<C>' ~ t.function.name ~ ' ' ~ t.function.arguments }}{%- endfor %}{%- endfor %}"
)
PAIRS = (
    "{%- for m in messages %}{{ '<' ~ m.role ~ '>' ~ m.content }}{%- for t in m.tool_calls or [] %}"
    "{{ t.function.name }}{%- for k, v in t.function.arguments.items() %}<{{ k }}>{{ v }}{%- endfor %}{%- endfor %}"
    "{%- endfor %}"
)
PARTS = PAIRS.replace(" ~ m.content", "").replace(
    "{%- for t in",
    "{%- if m.content is string %}{{ m.content }}{%- else %}{%- for part in m.content %}{{ part.text }}"
    "{%- endfor %}{%- endif %}{%- for t in",
    1,
)


def refusing(test: str, why: str = "bad id") -> str:
    return (
        "{%- for m in messages %}{%- if m.tool_calls %}{%- for t in m.tool_calls %}{%- set id = t.id %}"
        f"{{%- if {test} %}}{{{{ raise_exception('{why}') }}}}{{%- endif %}}"
        "[CALL]{{ t.function | tojson }} {{ id }}{%- endfor %}"
        f"{{%- elif m.role == 'tool' %}}{{%- set id = m.tool_call_id %}}{{%- if {test} %}}"
        f"{{{{ raise_exception('{why}') }}}}{{%- endif %}}[RESULT {{{{ id }}}}]{{{{ m.content }}}}"
        "{%- else %}{{ m.content }}{%- endif %}{%- endfor %}"
    )


MISTRAL = refusing(
    "id is not defined or id | length != 9", "Tool call IDs should be alphanumeric strings with length 9!"
)


def rendered(source: str, messages: list[dict[str, Any]]) -> str:
    template = ChatTemplate(source, {})
    history = template.history_form
    prepared = prepare_messages(
        messages, template.content_format, knows_developer=False, model_name="tiny", history=history
    )
    return template.render(prepared, keep_null_content=history.empty_content == "null")


@pytest.mark.parametrize(
    ("source", "form", "text"),
    [
        (DISTILLED, HistoryForm("text", "null"), f"<U>Weather?<C>function<S>weather\n{ARGUMENTS}</C><R>21</R><A>"),
        (R1, HistoryForm("text"), f"<user>Weather?<C>weather{ARGUMENTS}<tool>21"),
        (TILDE, HistoryForm("text"), f"<user>Weather?<assistant><C>weather {ARGUMENTS}<tool>21"),
        (PAIRS, HistoryForm(), "<user>Weather?<assistant>weather<city>Zürich<days>3<tool>21"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", HistoryForm(), "Weather?21"),
        ("{# tool_calls #}{% for m in messages %}{{ m.content }}{% endfor %}", HistoryForm(), "Weather?21"),
    ],
)
def test_the_form_is_found_and_used(source: str, form: HistoryForm, text: str) -> None:
    assert ChatTemplate(source, {}).history_form == form
    assert rendered(source, HISTORY) == text


def test_templates_that_walk_over_parts_are_tried_with_parts() -> None:
    template = ChatTemplate(PARTS, {})
    assert template.content_format == "openai"
    assert template.history_form == HistoryForm()
    assert rendered(PARTS, HISTORY) == "<user>Weather?<assistant>weather<city>Zürich<days>3<tool>21"


def test_text_that_is_no_json_reaches_a_template_of_text_as_the_model_wrote_it() -> None:
    for given, shown in ((" {oops ", "{oops"), ("", "{}"), (None, "{}"), ({"a": "é"}, '{"a": "é"}')):
        call = {"id": "1", "function": {"name": "f", "arguments": given}}  # also without a type, which it may print
        assert rendered(DISTILLED, [{"role": "assistant", "tool_calls": [call]}]).startswith(
            f"<C>function<S>f\n{shown}<"
        )


def test_content_beside_calls_stays() -> None:
    messages = [HISTORY[0], {**HISTORY[1], "content": "Let me see."}]
    assert rendered(R1, messages) == f"<user>Weather?Let me see.<C>weather{ARGUMENTS}"


def test_a_template_that_cannot_render_calls_says_why() -> None:
    form = ChatTemplate("{% if messages[1].tool_calls %}{{ raise_exception('no tools') }}{% endif %}", {}).history_form
    assert form.problem == "no tools" and "no tools" in str(form)


# ------------------------------------------------------------------------------------------------------------- ids


@pytest.mark.parametrize(
    ("test", "form"),
    [
        ("id | length != 9", IdForm(9)),
        ("id | length != 12", IdForm(12)),
        ("id | length > 10", IdForm(9)),
        ("id | length != 8 or (id | int(-1)) < 0", IdForm(8, "", "0123456789")),
        ("not id.startswith('tc-')", IdForm(24, "tc-")),
        ("id[:5] != 'call_' or id | length != 15", IdForm(10, "call_")),
        ("not id.isalnum()", IdForm(9)),
        ("false", None),
    ],
)
def test_ids_that_the_template_refuses_are_mapped(test: str, form: IdForm | None) -> None:
    source = refusing(test)
    assert ChatTemplate(source, {}).history_form == HistoryForm(ids=form)
    text = rendered(source, HISTORY)
    used = text.partition("[RESULT ")[2].partition("]")[0]
    assert text == f'Weather?[CALL]{{"name": "weather", "arguments": {ARGUMENTS}}} {used}[RESULT {used}]21'
    assert (used == LONG) == (form is None)


def test_an_id_is_the_same_in_every_turn_and_fitting_ones_stay() -> None:
    first = rendered(MISTRAL, HISTORY)
    assert rendered(MISTRAL, [*HISTORY, {"role": "user", "content": "More"}]).startswith(first)
    own = json.loads(json.dumps(HISTORY).replace(LONG, "aB3dE6gH9"))
    assert "[RESULT aB3dE6gH9]" in rendered(MISTRAL, own)


def test_different_ids_stay_different_also_where_there_are_few() -> None:
    form = IdForm(1, "", "0123456789")
    calls: list[dict[str, Any]] = [
        {"id": f"call_{index}", "function": {"name": "f", "arguments": {}}} for index in range(9)
    ]
    calls.append({"id": "7", "function": {"name": "f", "arguments": {}}})
    results: list[dict[str, Any]] = [
        {"role": "tool", "tool_call_id": call["id"], "content": ""} for call in reversed(calls)
    ]
    mapped = with_ids([{"role": "assistant", "tool_calls": calls}, *results], form)
    given = [call["id"] for call in mapped[0]["tool_calls"]]
    assert sorted(given) == [str(digit) for digit in range(10)] and given[9] == "7"
    assert [message["tool_call_id"] for message in mapped[1:]] == given[::-1]
    calls.append({"id": "another", "function": {"name": "f", "arguments": {}}})
    with pytest.raises(TemplateError, match="more tool calls than there are ids"):
        with_ids([{"role": "assistant", "tool_calls": calls}], form)


def test_missing_ids_are_made_and_belong_together() -> None:
    messages: list[dict[str, Any]] = [
        {"role": "assistant", "tool_calls": [{"function": {"name": name, "arguments": {}}} for name in "ab"]},
        {"role": "tool", "content": "1"},
        {"role": "tool", "content": "2"},
    ]
    mapped = with_ids(messages, IdForm(9))
    made = [call["id"] for call in mapped[0]["tool_calls"]]
    assert len(set(made)) == 2 and all(IdForm(9).fits(call_id) for call_id in made)
    assert [message["tool_call_id"] for message in mapped[1:]] == made
    assert "id" not in messages[0]["tool_calls"][0], "the request stays as it is"


def test_calls_of_2023_have_ids_too() -> None:
    messages: list[dict[str, Any]] = [
        {"role": "assistant", "function_call": {"name": "weather", "arguments": ARGUMENTS}},
        {"role": "function", "name": "weather", "content": "21"},
    ]
    assert "[RESULT " in rendered(MISTRAL, messages)


def test_a_template_of_a_request_is_tried_in_its_own_process() -> None:
    with UntrustedTemplate(MISTRAL, {}, timeout=30) as template:
        assert template.history_form == HistoryForm(ids=IdForm(9))
    with UntrustedTemplate(DISTILLED, {}, timeout=30) as template:
        assert template.history_form == HistoryForm("text", "null")
