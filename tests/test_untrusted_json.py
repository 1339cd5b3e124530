"""JSON from outside: what is read, what is refused and in which words, and that one bad element costs no other."""

import json
import os
import subprocess
import sys

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ember.untrusted_json import (
    MAX_DEPTH,
    QUEUE_DEPTH,
    Unreadable,
    UntrustedJsonError,
    check_depth,
    loads,
    loads_each,
    loads_strict,
    read_file,
)

DIGITS = sys.get_int_max_str_digits()
BOTH = pytest.mark.parametrize("read", [loads, loads_strict])


def nested(levels: int, kind: str = "list") -> str:
    """`levels` containers around a 1, of which half are beside others."""
    opened, closed = ('{"a":', "}") if kind == "dict" else ("[[],", "]")
    return opened * levels + "1" + closed * levels


def reason(read, text) -> str:
    with pytest.raises(UntrustedJsonError) as error:
        read(text)
    message = str(error.value)
    assert message and "\n" not in message and len(message) < 200
    return message


@BOTH
@pytest.mark.parametrize("kind", ["list", "dict"])
def test_depth_is_counted_exactly(read, kind):
    assert read(nested(MAX_DEPTH - (kind == "list"), kind)) is not None
    for levels in (MAX_DEPTH + 1, 900, 1_000, 5_000, 300_000):
        assert reason(read, nested(levels, kind)) == f"it is nested more than {MAX_DEPTH} levels deep"
    assert reason(read, b"[" * 1_000_000)  # which does not even end


@BOTH
def test_many_shallow_values_are_no_depth(read):
    text = json.dumps([{"a": [[{}]]}] * 5_000)
    assert len(read(text.encode())) == 5_000


@BOTH
def test_values_are_counted_before_they_are_made(read):
    for text in ("[" + "1," * 1_000 + "1]", b"[" + b"[]," * 500 + b"1]", "[" + "{}," * 500 + "1]"):
        with pytest.raises(UntrustedJsonError, match="more than 1000 values"):
            read(text, max_values=1_000)
        assert read(text, max_values=1_001)
    assert read('"' + "x" * 5_000 + '"', max_values=10)


def test_what_is_accepted_can_be_written_again_by_every_encoder_also_inside_a_queues_envelope():
    value = loads(nested(QUEUE_DEPTH - 1), QUEUE_DEPTH)
    for _ in range(20):
        value = {"output": [value]}
    assert json.dumps(value) and orjson.dumps(value)


@BOTH
def test_integers_of_too_many_digits_are_an_error_of_one_line(read):
    assert reason(read, '{"a": ' + "7" * (DIGITS + 1) + "}")
    assert "digits" in reason(loads, "[-" + "7" * (DIGITS + 1) + "]")
    longest = "[-" + "7" * DIGITS + "]"
    assert json.dumps(loads(longest)) == longest


@BOTH
@pytest.mark.parametrize(
    "text", ["", " ", "{", '{"a"}', "[1,]", '"abc', "nul", b"\xff\xfe\x00", b"\xff", b'"\xff"', b"\x00"]
)
def test_what_is_no_json_has_a_reason(read, text):
    reason(read, text)


@BOTH
@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"]
)
@pytest.mark.parametrize("value", [{"ä": ["€", "😀", 1.5]}, ["x"], "text", 12, True, None, {}])
def test_every_encoding_of_json_is_read(read, encoding, value):
    data = json.dumps(value, ensure_ascii=False).encode(encoding)
    assert json.loads(data) == value
    assert read(data) == value


def test_the_lenient_form_reads_what_the_json_module_reads_and_the_strict_one_what_can_be_written_again():
    for text in ("NaN", "[Infinity]", '"\\ud800"', "1e999"):
        assert repr(loads(text)) == repr(json.loads(text))
        reason(loads_strict, text)
    reason(loads_strict, '["\\ud800"]'.encode("utf-16"))
    reason(loads_strict, '["\ud800"]'.encode("utf-16", "surrogatepass"))
    for text in ('{"a": 1, "a": 2}', "[1, 2.5, -0.0]"):
        assert loads(text) == loads_strict(text) == json.loads(text)


@settings(deadline=None)
@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**53), 2**53)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_both_forms_agree_on_what_is_ordinary(value):
    data = json.dumps(value).encode()
    assert loads(data) == value
    if b"\\ud" not in data:
        assert loads_strict(data) == value


# ------------------------------------------------------------------------------------------------- one by one

TOO_DEEP = nested(1_500, "dict")
TOO_LONG = "8" * (DIGITS + 100)
GOOD = [
    '{"id": "a", "input": {"text": "\\"]}, {["}}',
    '{"id": "b", "input": [[], {}, "\\\\"]}',
    '{"input": 1, "id": "c"}',
]


@pytest.mark.parametrize(
    ("bad", "found"),
    [
        (f'{{"id": "x", "input": {TOO_DEEP}}}', "x"),
        (f'{{"input": {TOO_DEEP}, "id": "x\\u00e4"}}', "xä"),
        (f'{{"input": {{"id": "not this", "n": {TOO_LONG}}}, "id": "x"}}', "x"),
        (f'{{"input": {TOO_LONG}, "other": "id", "id": 5}}', None),
        (f'{{"id": "x", "input": {nested(MAX_DEPTH + 5)}}}', "x"),
        (f'{{"id": "first", "input": "]}}, {{[\\"", "id": "x", "n": {TOO_LONG}}}', "x"),
        ('{"id": "x", "input": nul}', "x"),
        ('{ "id" : "x" , "input": {"a" "b"}}', "x"),
        ('{"id": {"id": "inner"}, "input": nul}', None),
        (TOO_DEEP, None),
        (f"[{TOO_LONG}]", None),
        (TOO_LONG, None),
        ("nul", None),
        ('"\x00"', None),
    ],
)
@pytest.mark.parametrize("place", range(4))
def test_one_bad_element_costs_no_other(bad, found, place):
    elements = [*GOOD[:place], bad, *GOOD[place:]]
    read = loads_each((" [" + " ,\n".join(elements) + "\n] ").encode())
    assert len(read) == 4
    unreadable = read.pop(place)
    assert read == [json.loads(element) for element in GOOD]
    assert isinstance(unreadable, Unreadable) and unreadable.id == found
    assert unreadable.reason and "\n" not in unreadable.reason


def test_several_bad_elements_cost_only_themselves():
    bad = f'{{"id": "x", "input": {TOO_DEEP}}}'
    read = loads_each(f"[{bad},{GOOD[0]},{bad},{bad},{GOOD[1]}]".encode())
    assert [getattr(each, "id", None) or each["id"] for each in read] == ["x", "a", "x", "x", "b"]


@pytest.mark.parametrize("text", ["[]", " [ ] ", "[1]", '{"id": "a"}', "[[[]], {}]", "3", "[" + ",".join(GOOD) + "]"])
def test_what_is_in_order_is_read_as_ever(text):
    value = json.loads(text)
    assert loads_each(text.encode()) == (value if isinstance(value, list) else [value])
    assert loads_each(text.encode("utf-16")) == loads_each(text.encode())


def test_one_document_that_is_no_list():
    assert loads_each(f'{{"id": "x", "input": {TOO_DEEP}}}'.encode()) == [
        Unreadable(f"it is nested more than {MAX_DEPTH} levels deep", "x")
    ]
    for text in ("", "<html></html>", '"abc', "{", "["):
        reason(loads_each, text.encode())


def test_an_answer_that_breaks_off_costs_what_does_not_end():
    read = loads_each(f"[{GOOD[0]},{GOOD[1]},".encode() + b'{"id": "x", "input": {"text": "and th')
    assert read[:2] == [json.loads(GOOD[0]), json.loads(GOOD[1])]
    assert read[2].id == "x"


def test_bytes_that_are_no_utf8_stay_in_their_element():
    read = loads_each(b'[{"id": "a", "input": "\xff\xfe"}, {"id": "b", "input": "\xc3\xa4"}]')
    assert read == [{"id": "a", "input": "\udcff\udcfe"}, {"id": "b", "input": "ä"}]


@settings(deadline=None)
@given(st.text(alphabet='[]{}",:\\ adi1', max_size=60))
def test_whatever_comes_there_is_an_answer(text):
    try:
        read = loads_each(text.encode())
    except UntrustedJsonError:
        return
    assert isinstance(read, list)


ODD_TEXT = st.text(alphabet='id"\\\\[]{}:, ', max_size=8)
ODD_VALUE = st.recursive(
    st.none() | st.integers() | ODD_TEXT | st.just("id"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ODD_TEXT | st.just("id"), inner, max_size=4),
)


@settings(deadline=None)
@given(st.dictionaries(ODD_TEXT | st.just("id"), ODD_VALUE, max_size=6), st.booleans())
@example({"id": ""}, False)
def test_the_end_and_the_id_of_an_element_that_cannot_be_parsed_are_those_it_would_have(element, is_wide):
    text = json.dumps(element, indent=1 if is_wide else None)[1:-1].rstrip()
    bad = f'{{{text}{"," if element else ""} "last": nul}}'
    read = loads_each(f"[{bad}, {GOOD[0]}]".encode())
    assert read[1:] == [json.loads(GOOD[0])]
    given_id = element.get("id")
    assert isinstance(read[0], Unreadable)
    assert read[0].id == (given_id if isinstance(given_id, str) else None)


@pytest.mark.parametrize(
    "filler",
    [
        "[],",
        "[[[[[]]]]],",
        '{"id":"y"},',
        '{"a":{"a":{"a":{"id":"y"}}}},',
        '"\\\\\\"id",',
        '"]}",',
        "1,",
        '"[",[{"a":"}"}],',
    ],
)
def test_large_elements_are_passed_over_in_time_and_keep_their_id(filler):
    many = f"[{filler * 20_000}1]"
    entries = '"k": 1,' * 20_000
    bad = f'{{"a": {many}, "id": "x", "b": [{filler * 20_000}{TOO_DEEP}], "c": {{{entries}"d": 1}}}}'
    read = loads_each(f"[{GOOD[0]},{bad},{GOOD[1]}]".encode())
    assert [each.id if isinstance(each, Unreadable) else each["id"] for each in read] == ["a", "x", "b"]


def test_a_list_of_nothing_but_broken_elements_is_given_up():
    read = loads_each(b"[" + b"nul," * 1_000_000 + b"nul]")
    assert len(read) < 2_000 and all(isinstance(each, Unreadable) for each in read)


def test_hostile_strings_are_scanned_once():
    text = f'[{{"id": "x", "n": {TOO_LONG}, "t": "' + '\\"' * 400_000
    assert [each.id for each in loads_each(f"[{GOOD[0]},{text[1:]}".encode())[1:]] == ["x"]


# ------------------------------------------------------------------------------------------------- files


def test_a_file_is_read_within_its_bound(tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_file(path, 100) == {"a": 1}
    assert reason(lambda _: read_file(path, 10), None) == "it has 11 bytes; 10 are allowed"
    path.write_text(TOO_DEEP)
    assert "levels" in reason(lambda _: read_file(path, 10**6), None)


def test_what_is_no_regular_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", "/dev/zero"):
        assert reason(lambda _, path=path: read_file(path, 100), None) == "it is not a regular file"
    with pytest.raises(IsADirectoryError):
        read_file(tmp_path, 100)
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / "missing", 100)


def test_depth_of_a_value_that_was_read_elsewhere():
    check_depth(json.loads(nested(MAX_DEPTH, "dict")))
    with pytest.raises(UntrustedJsonError):
        check_depth(json.loads(nested(MAX_DEPTH + 1, "dict")))


def test_the_engine_can_import_it_at_no_cost():
    code = "import sys, json\nimport ember.untrusted_json\nprint('orjson' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
