"""The formats of tool calls, as data over six ways of writing them. The names are those of `--tool-call-parser`.

A format of a known kind is an entry here, a line in `choose.py`, and a test vector.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from ember.front.text.reasoning.messages import INKLING, MUSE, Frames
from ember.front.text.tokenizer import Tokenizer
from ember.front.text.tools.brace_calls import BraceCalls
from ember.front.text.tools.element_calls import ElementCalls
from ember.front.text.tools.json_calls import JsonCalls
from ember.front.text.tools.pythonic_calls import PythonicCalls
from ember.front.text.tools.section_calls import SectionCalls
from ember.front.text.tools.xml_calls import XmlCalls

_SUFFIXED = re.compile("<tool_calls?(:[^<>]+)>")  # a mark that ends in what only one checkpoint has

Calls = JsonCalls | SectionCalls | XmlCalls | ElementCalls | PythonicCalls | BraceCalls


@dataclass(frozen=True, slots=True)
class Entry:
    """One format: how its calls are written, and what else differs."""

    calls: Calls
    id_form: str = "openai"  # see ids.py
    is_harmony: bool = False  # calls are messages of Harmony
    frames: Frames | None = None  # calls are messages, which the reasoning's parser takes apart
    has_suffix: bool = False  # a checkpoint may have a suffix of its own in all marks: <tool_call:1a2b>

    def fitted(self, tokenizer: Tokenizer) -> Calls:
        """How the calls are written with this tokenizer."""
        if not self.has_suffix or not isinstance(self.calls, XmlCalls):
            return self.calls
        tokens = (tokenizer.vocab_entry(token_id) or "" for token_id in sorted(tokenizer.added_token_ids))
        found = next((match for token in tokens if (match := _SUFFIXED.fullmatch(token))), None)
        if found is None:
            return self.calls

        def suffixed(mark: str) -> str:
            return mark.replace(">", f"{found[1]}>")

        calls = self.calls
        return replace(
            calls,
            begin=suffixed(calls.begin),
            end=suffixed(calls.end),
            call=(suffixed(calls.call[0]), suffixed(calls.call[1])),
            call_end=suffixed(calls.call_end),
            key=(suffixed(calls.key[0]), suffixed(calls.key[1])),
            value_begin=suffixed(calls.value_begin),
            value_end=suffixed(calls.value_end),
        )


def _tagged(begin: str, end: str, space: str = "\n", between: str = "\n") -> Entry:
    """JSON objects, each in its own pair of tags."""
    return Entry(JsonCalls((begin,), (end,) if end else (), space=space, between=between))


def _listed(*begins: str, end: str = "", bare: str = "") -> Entry:
    """A JSON list of all calls."""
    return Entry(JsonCalls(begins, (end,) if end else (), bare=bare, is_list=True, space=""))


def _functions(begin: str, end: str, has_newlines: bool = True) -> Entry:
    """As Qwen3-Coder."""
    function, parameter = ("<function=", ">"), ("<parameter=", ">")
    return Entry(
        XmlCalls(
            begin,
            end,
            function,
            "</function>",
            parameter,
            "</parameter>",
            has_newlines=has_newlines,
            space="\n" if has_newlines else "",
            before_call="\n",
        )
    )


def _invokes(begin: str, end: str, prefix: str = "", typed_by: str = "") -> Entry:
    """`<invoke name="f">` with `<parameter name="k">`."""
    key = (f'<{prefix}parameter name="', '"' if typed_by else '">')
    call = (f'<{prefix}invoke name="', '">')
    calls = XmlCalls(
        begin, end, call, f"</{prefix}invoke>", key, f"</{prefix}parameter>", typed_by=typed_by, in_one=True
    )
    return Entry(calls)


def _pairs(space: str) -> Entry:
    """As GLM: keys and values in tags of their own."""
    key = ("<arg_key>", "</arg_key>")
    calls = XmlCalls(
        *("<tool_call>", "</tool_call>", ("", ""), "", key, "</arg_value>", "<arg_value>"),
        space=space,
        before_call=space,
    )
    return Entry(calls)


def _plamo(mark: str) -> str:
    return f"<|plamo:{mark}:plamo|>"


_PLAMO_ENDS = ("end_tool_arguments", "end_tool_request")
_PLAMO_HEADER = (
    rf"^\s*{re.escape(_plamo('begin_tool_name'))}\s*(?P<name>[^\s<>{{}}]+)\s*{re.escape(_plamo('end_tool_name'))}\s*$"
)
_HERMES = _tagged("<tool_call>", "</tool_call>")
_QWEN_CODER = _functions("<tool_call>", "</tool_call>")
_DEEPSEEK = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>")

FORMATS: dict[str, Entry] = {
    # JSON objects
    "hermes": _HERMES,
    "longcat": _tagged("<longcat_tool_call>", "</longcat_tool_call>"),
    "ernie45": _tagged("<tool_call>", "</tool_call>", between="\n\n"),
    "granite4": _HERMES,
    "granite-20b-fc": _tagged("<function_call>", "", space=" ", between=" "),
    "internlm": Entry(
        JsonCalls(("<|action_start|><|plugin|>", "<|action_start|> <|plugin|>"), ("<|action_end|>",), "", "parameters")
    ),
    "llama3_json": Entry(JsonCalls(("<|python_tag|>",), (), "{[", "parameters", space="", between="; ")),
    "granite": _listed("<|tool_call|>", "<tool_call>"),
    "jamba": _listed("<tool_calls>", end="</tool_calls>"),
    "hunyuan_a13b": _listed("<tool_calls>", end="</tool_calls>"),
    "phi4_mini_json": _listed("functools", "<|tool_call|>"),
    "xlam": Entry(
        JsonCalls(("[TOOL_CALLS]", "<tool_call>", "```json"), ("</tool_call>", "```"), bare="{[", is_list=True)
    ),
    "gigachat3": Entry(
        JsonCalls(
            ("<|function_call|>", "function call<|role_sep|>\n", "function call<|role_sep|>", "function call"),
            space="",
            between="",
        )
    ),
    "cohere_command3": Entry(
        JsonCalls(
            ("<|START_ACTION|>",),
            ("<|END_ACTION|>",),
            arguments="parameters",
            name="tool_name",
            number="tool_call_id",
            is_list=True,
            space="",
        )
    ),
    "apertus": Entry(JsonCalls(("<|tools_prefix|>",), ("<|tools_suffix|>",), is_keyed=True, is_list=True, space="")),
    "inkling": Entry(
        JsonCalls(
            ("<|content_invoke_tool_json|>",),
            ("<|end_message|>", "<|content_model_end_sampling|>", "<|message_model|>"),
            arguments="args",
            space="",
            between="<|message_model|>",
        ),
        frames=INKLING,
    ),
    # a header, and JSON
    "mistral": Entry(
        SectionCalls(
            ("[TOOL_CALLS]",),
            r"^\s*(?P<name>[^\s\[\]{}]+)\s*(?:\[CALL_ID\]\s*(?P<id>\w+))?\s*$",
            ("[ARGS]",),
            has_brace=True,
            has_json=True,
        ),
        id_form="mistral",
    ),
    "deepseek_v3": Entry(
        SectionCalls(
            (_DEEPSEEK[2],),
            r"^\s*(?:function)?\s*<｜tool▁sep｜>\s*(?P<name>[^\s`{}]+)\s*$",
            ("```json\n", "```json"),
            (_DEEPSEEK[3],),
            *_DEEPSEEK[:2],
            written="function<｜tool▁sep｜>{name}\n",
            before_end="\n```",
            between="\n",
        )
    ),
    "deepseek_v31": Entry(
        SectionCalls(
            (_DEEPSEEK[2],), r"^\s*(?P<name>[^\s{}]+)\s*$", ("<｜tool▁sep｜>",), (_DEEPSEEK[3],), *_DEEPSEEK[:2]
        )
    ),
    "kimi_k2": Entry(
        SectionCalls(
            ("<|tool_call_begin|>",),
            r"^\s*(?P<id>(?:functions\.)?(?P<name>[^\s:{}]+)(?::[0-9]+)?)\s*$",
            ("<|tool_call_argument_begin|>",),
            ("<|tool_call_end|>",),
            "<|tool_calls_section_begin|>",
            "<|tool_calls_section_end|>",
            written="functions.{name}:{index}",
        ),
        id_form="kimi",
    ),
    "openai": Entry(
        SectionCalls(
            ("<|start|>", "<|channel|>"),
            r"\bto=functions\.(?P<name>[\w.\-]+)",
            ("<|message|>",),
            ("<|call|>", "<|end|>", "<|return|>"),
            written="assistant<|channel|>commentary to=functions.{name} <|constrain|>json",
        ),
        is_harmony=True,
    ),
    "plamo3": Entry(
        SectionCalls(
            (_plamo("begin_tool_request"),),
            _PLAMO_HEADER,
            (_plamo("begin_tool_arguments") + "<|plamo:constrain|>json<|plamo:msg|>", _plamo("begin_tool_arguments")),
            (_plamo("end_tool_arguments") + _plamo("end_tool_request"), *map(_plamo, _PLAMO_ENDS)),
            _plamo("begin_tool_requests"),
            _plamo("end_tool_requests"),
            written=_plamo("begin_tool_name") + "{name}" + _plamo("end_tool_name"),
        )
    ),
    # tags
    "qwen3_coder": _QWEN_CODER,
    "step3p5": _QWEN_CODER,
    "seed_oss": _functions("<seed:tool_call>", "</seed:tool_call>"),
    "mimo": _functions("<tool_call>", "</tool_call>", has_newlines=False),
    "glm45": _pairs("\n"),
    "glm47": _pairs(""),
    "minimax_m2": _invokes("<minimax:tool_call>", "</minimax:tool_call>"),
    "deepseek_v32": _invokes("<｜DSML｜function_calls>", "</｜DSML｜function_calls>", "｜DSML｜", typed_by="string"),
    "deepseek_v4": _invokes("<｜DSML｜tool_calls>", "</｜DSML｜tool_calls>", "｜DSML｜", typed_by="string"),
    "dots": _invokes("<dots_function_call>", "</dots_function_call>"),
    "deepseek_v41": _invokes("<｜DSML｜ calls>", "</｜DSML｜ calls>", "｜DSML｜ ", typed_by="string"),
    "step3": Entry(
        XmlCalls(
            "<｜tool_calls_begin｜>",
            "<｜tool_calls_end｜>",
            ('<steptml:invoke name="', '">'),
            "</steptml:invoke>",
            ('<steptml:parameter name="', '">'),
            "</steptml:parameter>",
            in_one=True,
            lead="<｜tool_call_begin｜>function<｜tool_sep｜>",
            trail="<｜tool_call_end｜>",
        )
    ),
    "hy_v3": Entry(
        XmlCalls(
            *("<tool_calls>", "</tool_calls>", ("<tool_call>", "<tool_sep>"), "</tool_call>"),
            *(("<arg_key>", "</arg_key>"), "</arg_value>", "<arg_value>"),
            in_one=True,
        ),
        has_suffix=True,
    ),
    "minicpm5": Entry(
        XmlCalls("", "", ('<function name="', '">'), "</function>", ('<param name="', '">'), "</param>", space="")
    ),
    "muse": Entry(
        XmlCalls(
            *("<|message|>", "<|eom|>", ('<atem:invoke name="', '">'), "</atem:invoke>"),
            *(('<atem:parameter name="', '">'), "</atem:parameter>"),
            lead="<atem:function_calls>",
            trail="</atem:function_calls>",
            header_mark="<|start|>",
            header="assistant to={name}",
            other_end="<|eot|>",
        ),
        frames=MUSE,
    ),
    "k2_horizon": Entry(
        XmlCalls(
            *("<ifm|tool_calls>", "</ifm|tool_calls>", ("<ifm|tool_call>", ""), "</ifm|tool_call>"),
            *(("<ifm|arg_key>", "</ifm|arg_key>"), "</ifm|arg_value>", "<ifm|arg_value>"),
            type_tag=("<ifm|arg_type>", "</ifm|arg_type>"),
            in_one=True,
            space="",
        )
    ),
    "kimi_k3": Entry(
        XmlCalls(
            *("<|open|>tools<|sep|>", "<|close|>tools<|sep|>", ('<|open|>call tool="', '"'), "<|close|>call<|sep|>"),
            *(('<|open|>argument key="', '"'), "<|close|>argument<|sep|>"),
            typed_by="type",
            attributes_end="<|sep|>",
            call_attributes=' index="{index}"',
            has_entities=True,
            in_one=True,
            space="",
        )
    ),
    # elements
    "minimax_m3": Entry(ElementCalls("]<]minimax[>[")),
    # Python
    "pythonic": Entry(PythonicCalls(is_bare=True)),
    "llama4_pythonic": Entry(PythonicCalls(("<|python_start|>",), ("<|python_end|>",), is_bare=True)),
    "lfm2": Entry(PythonicCalls(("<|tool_call_start|>",), ("<|tool_call_end|>",))),
    "olmo3": Entry(
        PythonicCalls(
            ("<function_calls>",),
            ("</function_calls>",),
            has_brackets=False,
            between="\n",
            has_python_words=False,
        )
    ),
    # bare keys
    "gemma4": Entry(BraceCalls("<|tool_call>", "<tool_call|>", '<|"|>')),
    "functiongemma": Entry(BraceCalls("<start_function_call>", "<end_function_call>", "<escape>")),
}

ALIASES = {
    "qwen3_json": "hermes",
    "qwen3_xml": "qwen3_coder",
    "step5": "step3p5",
    "llama4_json": "llama3_json",
    "deepseek_r1": "deepseek_v3",
    "gpt_oss": "openai",
    "gptoss": "openai",
    "harmony": "openai",
    "ling3": "glm45",
    "poolside_v1": "glm45",
    "glm4_moe": "glm45",
    "cohere_command4": "cohere_command3",
    "hy_v4": "hy_v3",
    "muse_glimmer": "muse",
    "musespark1x": "muse",
}

# Names of vLLM's whose form is not one of calls in text.
WITHOUT_FORM = frozenset({"hf", "beam"})
