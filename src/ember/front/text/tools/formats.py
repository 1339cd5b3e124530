"""The formats of tool calls, as data. A row says how the models of one family write their calls; the parser of their
outputs and the grammar that holds a model to the format follow from it. The names are those of vLLM's
`--tool-call-parser`.

To add a format, start from an output of the model. One that calls the function `weather` with the arguments
`{"city": "Rome"}` may be

    <call>{"name": "weather", "arguments": {"city": "Rome"}}</call>

1. Find the class that describes such calls. Its docstring and its fields say what can differ between families.

   | class           | how a call is written                                             |
   |-----------------|-------------------------------------------------------------------|
   | `JsonCalls`     | a JSON object with the name and the arguments                     |
   | `SectionCalls`  | the name in a header between marks, then the arguments as JSON    |
   | `XmlCalls`      | a tag for the call, and one for each argument                     |
   | `ElementCalls`  | an element for each argument, named after it, which may hold more |
   | `PythonicCalls` | a call in Python: `weather(city="Rome")`                          |
   | `BraceCalls`    | an object with bare keys: `call:weather{city:...}`                |

2. Write a row of `FORMATS`. A field that is not given has the default of its class. The output above is

    Entry(calls=JsonCalls(begins=("<call>",), ends=("</call>",), space=""))

3. Add what tells the family to `choose.py`: a text of its chat template, else its `model_type`, else its name.
4. Add an output to `tests/text/tool_vectors.py` and a template to `tests/text/tool_templates.py`. The tests read the
   output in every cut, and hold a model to the grammar.
"""

from __future__ import annotations

import re

from ember.front.text.reasoning.messages import INKLING, MUSE
from ember.front.text.tools.brace_calls import BraceCalls
from ember.front.text.tools.element_calls import ElementCalls
from ember.front.text.tools.entry import Entry
from ember.front.text.tools.json_calls import JsonCalls
from ember.front.text.tools.pythonic_calls import PythonicCalls
from ember.front.text.tools.section_calls import SectionCalls
from ember.front.text.tools.xml_calls import XmlCalls

# ------------------------------------------------------------------------------- what several families have in common


def _function_tags(*, begin: str, end: str, has_newlines: bool = True) -> Entry:
    """Calls as Qwen3-Coder writes them: `<function=weather>` with `<parameter=city>`."""
    calls = XmlCalls(
        begin=begin,
        end=end,
        call=("<function=", ">"),
        call_end="</function>",
        key=("<parameter=", ">"),
        value_end="</parameter>",
        has_newlines=has_newlines,
        space="\n" if has_newlines else "",
        before_call="\n",
    )
    return Entry(calls=calls)


def _invoke_tags(*, begin: str, end: str, prefix: str = "", typed_by: str = "") -> Entry:
    """Calls as MiniMax M2 writes them: `<invoke name="weather">` with `<parameter name="city">`."""
    calls = XmlCalls(
        begin=begin,
        end=end,
        call=(f'<{prefix}invoke name="', '">'),
        call_end=f"</{prefix}invoke>",
        key=(f'<{prefix}parameter name="', '"' if typed_by else '">'),
        value_end=f"</{prefix}parameter>",
        typed_by=typed_by,
        in_one=True,
    )
    return Entry(calls=calls)


def _argument_pairs(*, space: str) -> Entry:
    """Calls as GLM writes them: `weather` with `<arg_key>city</arg_key><arg_value>Rome</arg_value>`."""
    calls = XmlCalls(
        begin="<tool_call>",
        end="</tool_call>",
        call=("", ""),
        call_end="",
        key=("<arg_key>", "</arg_key>"),
        value_begin="<arg_value>",
        value_end="</arg_value>",
        space=space,
        before_call=space,
    )
    return Entry(calls=calls)


def _plamo(mark: str) -> str:
    return f"<|plamo:{mark}:plamo|>"


_HERMES = Entry(calls=JsonCalls(begins=("<tool_call>",), ends=("</tool_call>",)))
_QWEN_CODER = _function_tags(begin="<tool_call>", end="</tool_call>")
_JSON_LIST_IN_TAGS = Entry(calls=JsonCalls(begins=("<tool_calls>",), ends=("</tool_calls>",), is_list=True, space=""))

# ---------------------------------------------------------------------------------------------------------- the table

FORMATS: dict[str, Entry] = {
    # JSON objects
    "hermes": _HERMES,
    "longcat": Entry(calls=JsonCalls(begins=("<longcat_tool_call>",), ends=("</longcat_tool_call>",))),
    "ernie45": Entry(calls=JsonCalls(begins=("<tool_call>",), ends=("</tool_call>",), between="\n\n")),
    "granite4": _HERMES,
    "granite-20b-fc": Entry(calls=JsonCalls(begins=("<function_call>",), space=" ", between=" ")),
    "internlm": Entry(
        calls=JsonCalls(
            begins=("<|action_start|><|plugin|>", "<|action_start|> <|plugin|>"),
            ends=("<|action_end|>",),
            arguments="parameters",
        )
    ),
    "llama3_json": Entry(
        calls=JsonCalls(begins=("<|python_tag|>",), bare="{[", arguments="parameters", space="", between="; ")
    ),
    "granite": Entry(calls=JsonCalls(begins=("<|tool_call|>", "<tool_call>"), is_list=True, space="")),
    "jamba": _JSON_LIST_IN_TAGS,
    "hunyuan_a13b": _JSON_LIST_IN_TAGS,
    "phi4_mini_json": Entry(calls=JsonCalls(begins=("functools", "<|tool_call|>"), is_list=True, space="")),
    "xlam": Entry(
        calls=JsonCalls(
            begins=("[TOOL_CALLS]", "<tool_call>", "```json"),
            ends=("</tool_call>", "```"),
            bare="{[",
            is_list=True,
        )
    ),
    "gigachat3": Entry(
        calls=JsonCalls(
            begins=("<|function_call|>", "function call<|role_sep|>\n", "function call<|role_sep|>", "function call"),
            space="",
            between="",
        )
    ),
    "cohere_command3": Entry(
        calls=JsonCalls(
            begins=("<|START_ACTION|>",),
            ends=("<|END_ACTION|>",),
            arguments="parameters",
            name="tool_name",
            number="tool_call_id",
            is_list=True,
            space="",
        )
    ),
    "apertus": Entry(
        calls=JsonCalls(begins=("<|tools_prefix|>",), ends=("<|tools_suffix|>",), is_keyed=True, is_list=True, space="")
    ),
    "inkling": Entry(
        calls=JsonCalls(
            begins=("<|content_invoke_tool_json|>",),
            ends=("<|end_message|>", "<|content_model_end_sampling|>", "<|message_model|>"),
            arguments="args",
            space="",
            between="<|message_model|>",
        ),
        frames=INKLING,
    ),
    # a header, and JSON
    "mistral": Entry(
        calls=SectionCalls(
            call_begins=("[TOOL_CALLS]",),
            header=r"^\s*(?P<name>[^\s\[\]{}]+)\s*(?:\[CALL_ID\]\s*(?P<id>\w+))?\s*$",
            arguments_begins=("[ARGS]",),
            has_brace=True,
            has_json=True,
        ),
        id_form="mistral",
    ),
    "deepseek_v3": Entry(
        calls=SectionCalls(
            begin="<｜tool▁calls▁begin｜>",
            end="<｜tool▁calls▁end｜>",
            call_begins=("<｜tool▁call▁begin｜>",),
            header=r"^\s*(?:function)?\s*<｜tool▁sep｜>\s*(?P<name>[^\s`{}]+)\s*$",
            written="function<｜tool▁sep｜>{name}\n",
            arguments_begins=("```json\n", "```json"),
            before_end="\n```",
            call_ends=("<｜tool▁call▁end｜>",),
            between="\n",
        )
    ),
    "deepseek_v31": Entry(
        calls=SectionCalls(
            begin="<｜tool▁calls▁begin｜>",
            end="<｜tool▁calls▁end｜>",
            call_begins=("<｜tool▁call▁begin｜>",),
            header=r"^\s*(?P<name>[^\s{}]+)\s*$",
            arguments_begins=("<｜tool▁sep｜>",),
            call_ends=("<｜tool▁call▁end｜>",),
        )
    ),
    "kimi_k2": Entry(
        calls=SectionCalls(
            begin="<|tool_calls_section_begin|>",
            end="<|tool_calls_section_end|>",
            call_begins=("<|tool_call_begin|>",),
            header=r"^\s*(?P<id>(?:functions\.)?(?P<name>[^\s:{}]+)(?::[0-9]+)?)\s*$",
            written="functions.{name}:{index}",
            arguments_begins=("<|tool_call_argument_begin|>",),
            call_ends=("<|tool_call_end|>",),
        ),
        id_form="kimi",
    ),
    "openai": Entry(
        calls=SectionCalls(
            call_begins=("<|start|>", "<|channel|>"),
            header=r"\bto=functions\.(?P<name>[\w.\-]+)",
            written="assistant<|channel|>commentary to=functions.{name} <|constrain|>json",
            arguments_begins=("<|message|>",),
            call_ends=("<|call|>", "<|end|>", "<|return|>"),
        ),
        is_harmony=True,
    ),
    "plamo3": Entry(
        calls=SectionCalls(
            begin=_plamo("begin_tool_requests"),
            end=_plamo("end_tool_requests"),
            call_begins=(_plamo("begin_tool_request"),),
            header=(
                rf"^\s*{re.escape(_plamo('begin_tool_name'))}\s*(?P<name>[^\s<>{{}}]+)\s*"
                rf"{re.escape(_plamo('end_tool_name'))}\s*$"
            ),
            written=_plamo("begin_tool_name") + "{name}" + _plamo("end_tool_name"),
            arguments_begins=(
                _plamo("begin_tool_arguments") + "<|plamo:constrain|>json<|plamo:msg|>",
                _plamo("begin_tool_arguments"),
            ),
            call_ends=(
                _plamo("end_tool_arguments") + _plamo("end_tool_request"),
                _plamo("end_tool_arguments"),
                _plamo("end_tool_request"),
            ),
        )
    ),
    # tags
    "qwen3_coder": _QWEN_CODER,
    "step3p5": _QWEN_CODER,
    "seed_oss": _function_tags(begin="<seed:tool_call>", end="</seed:tool_call>"),
    "mimo": _function_tags(begin="<tool_call>", end="</tool_call>", has_newlines=False),
    "glm45": _argument_pairs(space="\n"),
    "glm47": _argument_pairs(space=""),
    "minimax_m2": _invoke_tags(begin="<minimax:tool_call>", end="</minimax:tool_call>"),
    "deepseek_v32": _invoke_tags(
        begin="<｜DSML｜function_calls>", end="</｜DSML｜function_calls>", prefix="｜DSML｜", typed_by="string"
    ),
    "deepseek_v4": _invoke_tags(
        begin="<｜DSML｜tool_calls>", end="</｜DSML｜tool_calls>", prefix="｜DSML｜", typed_by="string"
    ),
    "dots": _invoke_tags(begin="<dots_function_call>", end="</dots_function_call>"),
    "deepseek_v41": _invoke_tags(
        begin="<｜DSML｜ calls>", end="</｜DSML｜ calls>", prefix="｜DSML｜ ", typed_by="string"
    ),
    "step3": Entry(
        calls=XmlCalls(
            begin="<｜tool_calls_begin｜>",
            end="<｜tool_calls_end｜>",
            lead="<｜tool_call_begin｜>function<｜tool_sep｜>",
            call=('<steptml:invoke name="', '">'),
            call_end="</steptml:invoke>",
            trail="<｜tool_call_end｜>",
            key=('<steptml:parameter name="', '">'),
            value_end="</steptml:parameter>",
            in_one=True,
        )
    ),
    "hy_v3": Entry(
        calls=XmlCalls(
            begin="<tool_calls>",
            end="</tool_calls>",
            call=("<tool_call>", "<tool_sep>"),
            call_end="</tool_call>",
            key=("<arg_key>", "</arg_key>"),
            value_begin="<arg_value>",
            value_end="</arg_value>",
            in_one=True,
        ),
        has_suffix=True,
    ),
    "minicpm5": Entry(
        calls=XmlCalls(
            begin="",
            end="",
            call=('<function name="', '">'),
            call_end="</function>",
            key=('<param name="', '">'),
            value_end="</param>",
            space="",
        )
    ),
    "muse": Entry(
        calls=XmlCalls(
            header_mark="<|start|>",
            header="assistant to={name}",
            begin="<|message|>",
            end="<|eom|>",
            other_end="<|eot|>",
            lead="<atem:function_calls>",
            call=('<atem:invoke name="', '">'),
            call_end="</atem:invoke>",
            trail="</atem:function_calls>",
            key=('<atem:parameter name="', '">'),
            value_end="</atem:parameter>",
        ),
        frames=MUSE,
    ),
    "k2_horizon": Entry(
        calls=XmlCalls(
            begin="<ifm|tool_calls>",
            end="</ifm|tool_calls>",
            call=("<ifm|tool_call>", ""),
            call_end="</ifm|tool_call>",
            key=("<ifm|arg_key>", "</ifm|arg_key>"),
            type_tag=("<ifm|arg_type>", "</ifm|arg_type>"),
            value_begin="<ifm|arg_value>",
            value_end="</ifm|arg_value>",
            in_one=True,
            space="",
        )
    ),
    "kimi_k3": Entry(
        calls=XmlCalls(
            begin="<|open|>tools<|sep|>",
            end="<|close|>tools<|sep|>",
            call=('<|open|>call tool="', '"'),
            call_attributes=' index="{index}"',
            call_end="<|close|>call<|sep|>",
            key=('<|open|>argument key="', '"'),
            typed_by="type",
            attributes_end="<|sep|>",
            value_end="<|close|>argument<|sep|>",
            has_entities=True,
            in_one=True,
            space="",
        )
    ),
    # elements
    "minimax_m3": Entry(calls=ElementCalls(prefix="]<]minimax[>[")),
    # Python
    "pythonic": Entry(calls=PythonicCalls(is_bare=True)),
    "llama4_pythonic": Entry(calls=PythonicCalls(begins=("<|python_start|>",), ends=("<|python_end|>",), is_bare=True)),
    "lfm2": Entry(calls=PythonicCalls(begins=("<|tool_call_start|>",), ends=("<|tool_call_end|>",))),
    "olmo3": Entry(
        calls=PythonicCalls(
            begins=("<function_calls>",),
            ends=("</function_calls>",),
            has_brackets=False,
            between="\n",
            has_python_words=False,
        )
    ),
    # bare keys
    "gemma4": Entry(calls=BraceCalls(begin="<|tool_call>", end="<tool_call|>", quote='<|"|>')),
    "functiongemma": Entry(
        calls=BraceCalls(begin="<start_function_call>", end="<end_function_call>", quote="<escape>")
    ),
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
