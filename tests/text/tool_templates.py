"""Chat templates of our own in the formats of the families that call tools, each with a model's type and name.

They are written to the families' formats and are none of the published ones: short, and about tool calls alone.
"""

from __future__ import annotations

from dataclasses import dataclass

_HEAD = """\
{%- if tools %}
    {{- OPEN_SYSTEM }}
    {{- INTRODUCTION }}
    {%- for tool in tools %}{{- '\\n' ~ (tool.function | tojson) }}{%- endfor %}
    {{- CLOSE }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {{- OPEN_TOOL ~ message.content ~ CLOSE }}
    {%- elif message.role == 'assistant' %}
        {{- OPEN_ASSISTANT ~ (message.content or '') }}
        {%- if message.tool_calls %}
CALLS
        {%- endif %}
        {{- CLOSE }}
    {%- else %}
        {{- OPEN_USER ~ message.content ~ CLOSE }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- OPEN_ASSISTANT }}{%- endif %}
"""


def template(
    calls: str, introduction: str = "You may call:", roles: str = "<|{}|>", close: str = "<|end_of_turn|>"
) -> str:
    """`calls` writes `message.tool_calls`; `roles` is what opens a turn."""
    made = _HEAD.replace("CALLS", calls)
    for role in ("system", "tool", "assistant", "user"):
        made = made.replace(f"OPEN_{role.upper()}", repr(roles.format(role)))
    return made.replace("INTRODUCTION", repr(introduction)).replace("CLOSE", repr(close))


def each(body: str, before: str = "", behind: str = "", between: str = "") -> str:
    """The template of all calls, where `body` writes one of `f` (`f.name`, `f.arguments`)."""
    separator = f"{{%- if not loop.first %}}{{{{- {between!r} }}}}{{%- endif %}}" if between else ""
    return (
        f"{{{{- {before!r} }}}}{{%- for call in message.tool_calls %}}{{%- set f = call.function %}}{separator}"
        f"{body}{{%- endfor %}}{{{{- {behind!r} }}}}"
    )


EITHER = "(f.arguments if f.arguments is string else f.arguments | tojson)"  # text or an object, as Qwen's template


def as_json(key: str = "arguments", before: str = "", behind: str = "", value: str = "(f.arguments | tojson)") -> str:
    head = f'{before}{{"name": "'
    return f'{{{{- {head!r} ~ f.name ~ \'", "{key}": \' ~ {value} ~ {"}" + behind!r} }}}}'


def pairs(head: str, pair: str, tail: str) -> str:
    """`pair` writes `key` and `text`, the value as it is where it is a string, as JSON where it is not."""
    return (
        f"{{{{- {head} }}}}{{%- for key, value in f.arguments.items() %}}"
        "{%- set text = value if value is string else value | tojson %}"
        "{%- set is_text = 'true' if value is string else 'false' %}"
        f"{{{{- {pair} }}}}{{%- endfor %}}{{{{- {tail} }}}}"
    )


CODER = pairs(
    "'\\n<tool_call>\\n<function=' ~ f.name ~ '>\\n'",
    "'<parameter=' ~ key ~ '>\\n' ~ text ~ '\\n</parameter>\\n'",
    "'</function>\\n</tool_call>'",
)
DSML = pairs(
    "'<｜DSML｜invoke name=\"' ~ f.name ~ '\">\\n'",
    "'<｜DSML｜parameter name=\"' ~ key ~ '\" string=\"' ~ is_text ~ '\">' ~ text ~ '</｜DSML｜parameter>\\n'",
    "'</｜DSML｜invoke>\\n'",
)
STEP = pairs(
    "'<｜tool_call_begin｜>function<｜tool_sep｜><steptml:invoke name=\"' ~ f.name ~ '\">\n'",
    "'<steptml:parameter name=\"' ~ key ~ '\">' ~ text ~ '</steptml:parameter>\n'",
    "'</steptml:invoke><｜tool_call_end｜>\n'",
)
HUNYUAN = pairs(
    "'<tool_call>' ~ f.name ~ '<tool_sep>\n'",
    "'<arg_key>' ~ key ~ '</arg_key>\n<arg_value>' ~ text ~ '</arg_value>\n'",
    "'</tool_call>\n'",
)
MINICPM = pairs(
    "'<function name=\"' ~ f.name ~ '\">'", "'<param name=\"' ~ key ~ '\">' ~ text ~ '</param>'", "'</function>'"
)
IFM = pairs(
    "'<ifm|tool_call>' ~ f.name",
    "'<ifm|arg_key>' ~ key ~ '</ifm|arg_key><ifm|arg_value>' ~ text ~ '</ifm|arg_value>'",
    "'</ifm|tool_call>\n'",
)
XTML = pairs(
    "'<|open|>call tool=\"' ~ f.name ~ '\" index=\"' ~ loop.index ~ '\"<|sep|>'",
    "'<|open|>argument key=\"' ~ key ~ '\" type=\"' ~ ('string' if value is string else 'object') ~ '\"<|sep|>' ~ text"
    " ~ '<|close|>argument<|sep|>'",
    "'<|close|>call<|sep|>'",
)
PLAMO = (
    "{{- '<|plamo:begin_tool_request:plamo|><|plamo:begin_tool_name:plamo|>' ~ f.name }}"
    "{{- '<|plamo:end_tool_name:plamo|>' }}"
    "{{- '<|plamo:begin_tool_arguments:plamo|><|plamo:constrain|>json<|plamo:msg|>' ~ (f.arguments | tojson) }}"
    "{{- '<|plamo:end_tool_arguments:plamo|><|plamo:end_tool_request:plamo|>' }}"
)
COHERE = (
    '{{- \'    {"tool_call_id": "\' ~ loop.index0 ~ \'", "tool_name": "\' ~ f.name }}'
    "{{- '\", \"parameters\": ' ~ (f.arguments | tojson) ~ '}' }}"
)
INVOKE = pairs(
    "'<invoke name=\"' ~ f.name ~ '\">\\n'",
    "'<parameter name=\"' ~ key ~ '\">' ~ text ~ '</parameter>\\n'",
    "'</invoke>\\n'",
)
ATEM = pairs(
    "'<atem:invoke name=\"' ~ f.name ~ '\">\n'",
    "'<atem:parameter name=\"' ~ key ~ '\">' ~ text ~ '</atem:parameter>\n'",
    "'</atem:invoke>\n'",
)
M3 = (
    "{%- macro element(name, value) -%}NS<{{ name }}>{%- if value is string -%}{{ value }}"
    "{%- elif value is mapping -%}{%- for k, v in value.items() -%}{{ element(k, v) }}{%- endfor -%}"
    "{%- elif value is iterable -%}{%- for v in value -%}{{ element('item', v) }}{%- endfor -%}"
    "{%- else -%}{{ value | tojson }}{%- endif -%}NS</{{ name }}>{%- endmacro -%}"
)
M3_CALL = (
    "{{- 'NS<invoke name=\"' ~ f.name ~ '\">' }}{%- for key, value in f.arguments.items() %}{{- element(key, value) }}"
    "{%- endfor %}{{- 'NS</invoke>\n' }}"
)
GLM = "'<arg_key>' ~ key ~ '</arg_key>{0}<arg_value>' ~ text ~ '</arg_value>{0}'"
PYTHON = (
    "{{- f.name ~ '(' }}{%- for key, value in f.arguments.items() %}"
    "{{- key ~ '=' ~ (value | tojson) }}{%- if not loop.last %}{{- ', ' }}{%- endif %}{%- endfor %}{{- ')' }}"
)
_BRACE_VALUE = (
    "{%- macro braces(value) -%}{%- if value is string -%}QUOTE{{ value }}QUOTE"
    "{%- elif value is mapping -%}{{ '{' }}{%- for k, v in value.items() -%}{{ k }}:{{ braces(v) }}"
    "{{ ',' if not loop.last }}{%- endfor -%}{{ '}' }}"
    "{%- elif value is iterable -%}[{%- for v in value -%}{{ braces(v) }}{{ ',' if not loop.last }}{%- endfor -%}]"
    "{%- else -%}{{ value | tojson }}{%- endif -%}{%- endmacro -%}"
)


def braces(begin: str, end: str, quote: str) -> str:
    calls = each(f"{{{{- {begin + 'call:'!r} ~ f.name ~ braces(f.arguments) ~ {end!r} }}}}")
    return _BRACE_VALUE.replace("QUOTE", quote) + template(calls)


@dataclass(frozen=True)
class Family:
    format: str
    template: str
    model_type: str = "llama"
    model_name: str = "models/own"
    arguments: str = "object"  # as what the template takes the arguments of earlier calls


_V3 = "{{- '<｜tool▁call▁begin｜>function<｜tool▁sep｜>' + f.name + '\\n```json\\n' + f.arguments"
HARMONY = (
    "{%- for call in message.tool_calls %}{%- if not loop.first %}{{- '<|start|>assistant' }}{%- endif %}"
    "{{- '<|channel|>commentary to=functions.' ~ call.function.name ~ ' <|constrain|>json<|message|>' }}"
    "{{- (call.function.arguments | tojson) ~ '<|call|>' }}{%- endfor %}"
)
MISTRAL_JSON = each(as_json(), "[TOOL_CALLS][", "]", ", ")
MISTRAL_ARGS = each("{{- '[TOOL_CALLS]' ~ f.name ~ '[ARGS]' ~ (f.arguments | tojson) }}")

FAMILIES = [
    Family(
        "hermes",
        template(each(as_json(before="\n<tool_call>\n", behind="\n</tool_call>", value=EITHER))),
        "qwen2",
        "Qwen2.5-7B",
    ),
    Family("qwen3_coder", template(each(CODER)), "qwen3_moe", "Qwen3-Coder-30B"),
    Family("step3p5", template(each(CODER)), "step3p5", "Step-3.5-Flash"),
    Family("seed_oss", template(each(CODER.replace("tool_call>", "seed:tool_call>"))), "seed_oss"),
    Family(
        "mimo",
        template(
            each(
                pairs(
                    "'<tool_call>\\n<function=' ~ f.name ~ '>'",
                    "'<parameter=' ~ key ~ '>' ~ text ~ '</parameter>'",
                    "'</function>\\n</tool_call>'",
                )
            )
        ),
        "mimo_v2",
    ),
    Family(
        "llama3_json",
        template(
            each(as_json("parameters"), between="; "), 'Answer with {"name": function name, "parameters": dictionary}.'
        ),
        model_name="Llama-3.1-8B",
    ),
    Family("llama3_json", template(each(as_json("parameters"), "<|python_tag|>", "", "; "))),
    Family("mistral", template(MISTRAL_JSON, roles="[{}]", close="</s>"), "mistral"),
    Family("mistral", template(MISTRAL_ARGS, roles="[{}]", close="</s>"), "mistral3"),
    Family("openai", template(HARMONY, "namespace functions.", "<|start|>{}", "<|end|>"), "gpt_oss"),
    Family(
        "deepseek_v3",
        template(
            each(_V3 + " + '\\n```<｜tool▁call▁end｜>' }}", "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "\n")
        ),
        "deepseek_v3",
        "DeepSeek-R1",
        "text",
    ),
    Family(
        "deepseek_v31",
        template(
            each(
                "{{- '<｜tool▁call▁begin｜>' + f.name + '<｜tool▁sep｜>' + f.arguments + '<｜tool▁call▁end｜>' }}",
                "<｜tool▁calls▁begin｜>",
                "<｜tool▁calls▁end｜>",
            )
        ),
        "deepseek_v3",
        arguments="text",
    ),
    Family("deepseek_v32", template(each(DSML, "<｜DSML｜function_calls>\n", "</｜DSML｜function_calls>"))),
    Family("deepseek_v4", template(each(DSML, "<｜DSML｜tool_calls>\n", "</｜DSML｜tool_calls>"))),
    Family(
        "kimi_k2",
        template(
            each(
                "{{- '<|tool_call_begin|>' ~ call.id ~ '<|tool_call_argument_begin|>' ~ "
                + EITHER
                + " ~ '<|tool_call_end|>' }}",
                "<|tool_calls_section_begin|>",
                "<|tool_calls_section_end|>",
            )
        ),
        "deepseek_v3",
        "Kimi-K2-Instruct",
    ),
    Family(
        "glm45",
        template(each(pairs("'\\n<tool_call>' ~ f.name ~ '\\n'", GLM.format("\\n"), "'</tool_call>'"))),
        "glm4_moe",
    ),
    Family("glm47", template(each(pairs("'<tool_call>' ~ f.name", GLM.format(""), "'</tool_call>'"))), "glm4_moe"),
    Family("minimax_m2", template(each(INVOKE, "\n<minimax:tool_call>\n", "</minimax:tool_call>")), "minimax_m2"),
    Family("pythonic", template(each(PYTHON, "[", "]", ", "), "Answer with [func_name1(key=value), func_name2()].")),
    Family(
        "llama4_pythonic",
        template(each(PYTHON, "<|python_start|>[", "]<|python_end|>", ", "), "[func_name1(key=value)]"),
        "llama4",
    ),
    Family("olmo3", template(each(PYTHON, "<function_calls>", "</function_calls>", "\n")), "olmo3"),
    Family("lfm2", template(each(PYTHON, "<|tool_call_start|>[", "]<|tool_call_end|>", ", ")), "lfm2"),
    Family("granite", template(each(as_json(), "<|tool_call|>[", "]", ", ")), "granite"),
    Family(
        "granite4",
        template(each(as_json(before="<tool_call>\n", behind="\n</tool_call>"), between="\n")),
        "granitemoehybrid",
    ),
    Family(
        "internlm",
        template(each(as_json("parameters"), "<|action_start|><|plugin|>\n", "<|action_end|>", "\n")),
        "internlm3",
    ),
    Family("jamba", template(each(as_json(), "<tool_calls>[", "]</tool_calls>", ", ")), "jamba"),
    Family("hunyuan_a13b", template(each(as_json(), "<tool_calls>[", "]</tool_calls>", ", ")), "hunyuan_v1_moe"),
    Family("phi4_mini_json", template(each(as_json(), "functools[", "]", ", ")), "phi3", "Phi-4-mini"),
    Family("xlam", template(each(as_json(), "[", "]", ", ")), "llama", "Llama-xLAM-2-8b"),
    Family("ernie45", template(each(as_json(before="\n<tool_call>\n", behind="\n</tool_call>\n"))), "ernie4_5_moe"),
    Family(
        "gigachat3",
        template(each(as_json(before="<|function_call|>"))),
        "deepseek_v3",
        "GigaChat3-10B",
    ),
    Family(
        "cohere_command3",
        template(each(COHERE, "<|START_ACTION|>[\n", "\n]<|END_ACTION|>", ",\n")),
        "cohere2",
        "c4ai-command-r7b-12-2024",
    ),
    Family(
        "apertus",
        template(
            each(
                "{{- '{\"' ~ f.name ~ '\": ' ~ (f.arguments | tojson) ~ '}' }}",
                "<|tools_prefix|>[",
                "]<|tools_suffix|>",
                ", ",
            )
        ),
        "apertus",
    ),
    Family("step3", template(each(STEP, "<｜tool_calls_begin｜>\n", "<｜tool_calls_end｜>")), "step3_text", "Step3"),
    Family("hy_v3", template(each(HUNYUAN, "<tool_calls>\n", "</tool_calls>")), "hy_v3"),
    Family("minicpm5", template(each(MINICPM)), "minicpm"),
    Family(
        "deepseek_v41",
        template(each(DSML.replace("DSML｜", "DSML｜ "), "<｜DSML｜ calls>\n", "</｜DSML｜ calls>")),
    ),
    Family("k2_horizon", template(each(IFM, "<ifm|tool_calls>", "</ifm|tool_calls>"))),
    Family("kimi_k3", template(each(XTML, "<|open|>tools<|sep|>", "<|close|>tools<|sep|>"))),
    Family(
        "plamo3",
        template(each(PLAMO, "<|plamo:begin_tool_requests:plamo|>", "<|plamo:end_tool_requests:plamo|>")),
        "plamo3",
    ),
    Family(
        "minimax_m3",
        (M3 + template(each(M3_CALL, "NS<tool_call>\n", "NS</tool_call>"))).replace("NS<", "]<]minimax[>[<"),
        "minimax_m3",
    ),
    Family(
        "inkling",
        template(
            each(
                "{{- '{\"name\": \"' ~ f.name ~ '\", \"args\": ' ~ (f.arguments | tojson) ~ '}<|end_message|>' }}"
            ).replace("{{- '{", "{{- '<|content_invoke_tool_json|>{")
        ),
        "inkling",
    ),
    Family("muse", template(each(ATEM, "<|message|><atem:function_calls>\n", "</atem:function_calls><|eom|>")), "muse"),
    Family("gemma4", braces("<|tool_call>", "<tool_call|>", '<|"|>'), "gemma4"),
    Family("functiongemma", braces("<start_function_call>", "<end_function_call>", "<escape>"), "gemma3_text"),
]
