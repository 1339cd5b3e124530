"""Outputs with tool calls in the format of each family, and what they mean."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any


def tool(name: str, required: tuple[str, ...] = (), strict: bool | None = None, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": list(required)}
    function: dict[str, Any] = {"name": name, "description": f"{name}.", "parameters": parameters}
    if strict is not None:
        function["strict"] = strict
    return {"type": "function", "function": function}


TEXT = {"type": "string"}
TOOLS = [
    tool(
        "weather",
        ("city",),
        city=TEXT,
        days={"type": "integer", "minimum": 0, "maximum": 14},
        unit={"enum": ["C", "F"]},
    ),
    tool("now"),
    tool(
        "note",
        ("text",),
        text=TEXT,
        tags={"type": "array", "items": TEXT},
        extra={"type": "object", "properties": {"a": {"type": "number"}, "ok": {"type": "boolean"}}},
        is_open={"type": "boolean"},
        ratio={"type": "number"},
        parent={"anyOf": [TEXT, {"type": "null"}]},
    ),
]


@dataclass(frozen=True)
class Vector:
    """What is read in the whole output. `calls` are names with arguments: an object, or a text for calls that are no
    whole one."""

    name: str
    output: str
    calls: list[tuple[str, Any]]
    content: str = ""
    ids: list[str | None] = field(default_factory=list)
    sent: list[tuple[str, str]] | None = None  # by a stream, where it could not take a call back


ONE = ("weather", {"city": "Zürich", "days": 3})
NOW: tuple[str, Any] = ("now", {})
DEEP = ("note", {"text": 'a "b" \\ </x>\n🦜', "tags": ["x", "y z"], "extra": {"a": 1.5, "ok": True}})
DEEP_JSON = '{"text": "a \\"b\\" \\\\ </x>\\n🦜", "tags": ["x", "y z"], "extra": {"a": 1.5, "ok": true}}'


def hermes(name: str = "weather", arguments: str = '{"city": "Zürich", "days": 3}') -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def coder(name: str, **values: str) -> str:
    lines = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in values.items())
    return f"<tool_call>\n<function={name}>\n{lines}</function>\n</tool_call>"


def dsml(name: str, *values: tuple[str, bool, str]) -> str:
    lines = "".join(
        f'<｜DSML｜parameter name="{key}" string="{str(is_text).lower()}">{value}</｜DSML｜parameter>\n'
        for key, is_text, value in values
    )
    return f'<｜DSML｜invoke name="{name}">\n{lines}</｜DSML｜invoke>\n'


def glm(name: str, gap: str = "\n", **values: str) -> str:
    pairs = "".join(
        f"<arg_key>{key}</arg_key>{gap}<arg_value>{value}</arg_value>{gap}" for key, value in values.items()
    )
    return f"<tool_call>{name}{gap}{pairs}</tool_call>"


def minimax(name: str, **values: str) -> str:
    lines = "".join(f'<parameter name="{key}">{value}</parameter>\n' for key, value in values.items())
    return f'<invoke name="{name}">\n{lines}</invoke>\n'


def cohere(*calls: tuple[str, str]) -> str:
    made = (
        f'{{"tool_call_id": "{index}", "tool_name": "{name}", "parameters": {arguments}}}'
        for index, (name, arguments) in enumerate(calls)
    )
    return "<|START_ACTION|>[\n    " + ",\n    ".join(made) + "\n]<|END_ACTION|>"


def steptml(name: str, **values: str) -> str:
    lines = "".join(f'<steptml:parameter name="{key}">{value}</steptml:parameter>\n' for key, value in values.items())
    return f'{STEP}<steptml:invoke name="{name}">\n{lines}</steptml:invoke><｜tool_call_end｜>'


def hunyuan(name: str, suffix: str = "", **values: str) -> str:
    pairs = "".join(
        f"<arg_key{suffix}>{key}</arg_key{suffix}>\n<arg_value{suffix}>{value}</arg_value{suffix}>\n"
        for key, value in values.items()
    )
    return f"<tool_call{suffix}>{name}<tool_sep{suffix}>\n{pairs}</tool_call{suffix}>\n"


def minicpm(name: str, **values: str) -> str:
    pairs = "".join(f'<param name="{key}">{value}</param>' for key, value in values.items())
    return f'<function name="{name}">{pairs}</function>'


STEP = "<｜tool_call_begin｜>function<｜tool_sep｜>"
S_BEGIN, S_END = "<｜tool_calls_begin｜>", "<｜tool_calls_end｜>"
V3 = "<｜tool▁call▁begin｜>function<｜tool▁sep｜>{}\n```json\n{}\n```<｜tool▁call▁end｜>"
V31 = "<｜tool▁call▁begin｜>{}<｜tool▁sep｜>{}<｜tool▁call▁end｜>"


def ifm(name: str, **values: str) -> str:
    pairs = "".join(f"<ifm|arg_key>{k}</ifm|arg_key><ifm|arg_value>{v}</ifm|arg_value>" for k, v in values.items())
    return f"<ifm|tool_call>{name}{pairs}</ifm|tool_call>"


def xtml(index: int, name: str, *values: tuple[str, str, str]) -> str:
    arguments = "".join(
        f'<|open|>argument key="{key}" type="{kind}"<|sep|>{value}<|close|>argument<|sep|>'
        for key, kind, value in values
    )
    return f'<|open|>call tool="{name}" index="{index}"<|sep|>{arguments}<|close|>call<|sep|>'


def plamo(name: str, arguments: str) -> str:
    return (
        f"<|plamo:begin_tool_request:plamo|><|plamo:begin_tool_name:plamo|>{name}<|plamo:end_tool_name:plamo|>"
        f"<|plamo:begin_tool_arguments:plamo|><|plamo:constrain|>json<|plamo:msg|>{arguments}"
        "<|plamo:end_tool_arguments:plamo|><|plamo:end_tool_request:plamo|>"
    )


def m3(name: str, inside: str) -> str:
    """Every tag is written without what stands before it."""
    return re.sub("<(?=/?[a-z])", NS + "<", f'<invoke name="{name}">{inside}</invoke>')


NS = "]<]minimax[>["
M_BEGIN, M_END = f"{NS}<tool_call>\n", f"{NS}</tool_call>"
I_BEGIN, I_END = "<ifm|tool_calls>", "</ifm|tool_calls>"
X_BEGIN, X_END = "<|open|>tools<|sep|>", "<|close|>tools<|sep|>"
P_BEGIN, P_END = "<|plamo:begin_tool_requests:plamo|>", "<|plamo:end_tool_requests:plamo|>"
V_BEGIN, V_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
KIMI = "<|tool_call_begin|>functions.{}<|tool_call_argument_begin|>{}<|tool_call_end|>"
K_BEGIN, K_END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
HARMONY = "<|channel|>commentary to=functions.{} <|constrain|>json<|message|>{}<|call|>"
Q = '<|"|>'
ARGUMENTS = '{"city": "Zürich", "days": 3}'
TAGS, EXTRA = '["x", "y z"]', '{"a": 1.5, "ok": true}'
DEEP_TEXT = 'a "b" \\ </x>\n🦜'

VECTORS = [
    # ---------------------------------------------------------------------------------------- JSON objects in tags
    Vector("hermes", hermes(), [ONE]),
    Vector("hermes", "Let me see.\n\n" + hermes() + "\n" + hermes("now", "{}"), [ONE, NOW], "Let me see."),
    Vector("hermes", hermes() + "\nThat is all.", [ONE], "That is all."),
    Vector("hermes", "One. " + hermes() + "\nTwo.", [ONE], "One.\nTwo."),
    Vector("hermes", hermes("note", DEEP_JSON), [DEEP]),
    Vector("hermes", "No call at all.\n", [], "No call at all.\n"),
    Vector("hermes", "  \n", [], "  \n"),
    Vector("hermes", '<tool_call>{"name":"weather","arguments":{"city":"Zürich","days":3}}</tool_call>', [ONE]),
    Vector(
        "hermes", '<tool_call>\n{"arguments": {"city": "Zürich", "days": 3}, "name": "weather"}\n</tool_call>', [ONE]
    ),
    Vector("hermes", '<tool_call>\n{"name": "now"}\n</tool_call>', [NOW]),
    Vector("hermes", '<tool_call>\n{"name": "now", "arguments": null}\n</tool_call>', [NOW]),
    Vector(
        "hermes",
        '<tool_call>\n{"name": "weather", "arguments": "{\\"city\\": \\"Zürich\\", \\"days\\": 3}"}\n</tool_call>',
        [ONE],
    ),
    Vector("hermes", '<tool_call>\n{"id": "1", "name": "now", "arguments": {}, "x": [1]}\n</tool_call>', [NOW]),
    Vector(
        "hermes",
        '<tool_call>\n{"type": "function", "function": {"name": "now", "arguments": {}}}\n</tool_call>',
        [NOW],
    ),
    Vector("hermes", '<tool_call>\n{"name": "now", "arguments": {}}\n{"name": "now"}\n</tool_call>', [NOW, NOW]),
    Vector("hermes", '<tool_call>\n{"name": "now", "arguments": {}}', [NOW]),
    Vector("hermes", '<tool_call>\n{"name": "weather", "arguments": {"city": "Zür', [("weather", '{"city": "Zür')]),
    Vector("hermes", '<tool_call>\n{"name": "wea', [], '<tool_call>\n{"name": "wea'),
    Vector("hermes", "<tool_call>\n", [], "<tool_call>\n"),
    Vector("hermes", "<tool_call>\nnothing\n</tool_call>", [], "<tool_call>\nnothing\n</tool_call>"),
    Vector("hermes", '<tool_call>\n{"name": 3}\n</tool_call>', [], '<tool_call>\n{"name": 3}\n</tool_call>'),
    Vector(
        "hermes",
        "<tool_call>\n{'name'}\n</tool_call>\n" + hermes("now", "{}"),
        [NOW],
        "<tool_call>\n{'name'}\n</tool_call>",
    ),
    # what models get wrong
    Vector(
        "hermes", '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich", "days": 3}\n</tool_call>', [ONE]
    ),
    Vector(
        "hermes", '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich", "days": 3}}}\n</tool_call>', [ONE]
    ),
    Vector(
        "hermes",
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich", "days": 3\n</tool_call>',
        [],
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich", "days": 3\n</tool_call>',
        sent=[("weather", '{"city": "Zürich", "days": 3\n')],
    ),
    Vector(
        "hermes",
        hermes("now", "{}") + "\n" + hermes("weather", '{"city": Zürich}'),
        [NOW],
        hermes("weather", '{"city": Zürich}'),
        sent=[("now", "{}"), ("weather", '{"city": Zürich}')],
    ),
    Vector(
        "hermes",
        hermes("note", '{"ratio": NaN}') + "Hm.",
        [],
        hermes("note", '{"ratio": NaN}') + "Hm.",
        sent=[("note", '{"ratio": NaN}')],
    ),
    Vector("hermes", "<tool_call>\n<tool_call>\n" + hermes().removeprefix("<tool_call>"), [ONE]),
    Vector("hermes", hermes() + "</tool_call>\n</tool_call>", [ONE]),
    Vector("hermes", "Ok.<tool_call>\n</tool_call>\nNo.", [], "Ok.\nNo."),
    Vector("hermes", "<tool_call></tool_call></tool_call>" + hermes("now", "{}"), [NOW]),
    Vector("hermes", hermes(arguments='{"arguments": {"city": "Zürich", "days": 3}}'), [ONE]),
    Vector("hermes", hermes(arguments='{"input": "{\\"city\\": \\"Zürich\\", \\"days\\": 3}"}'), [ONE]),
    Vector(
        "hermes",
        hermes(arguments='{ "properties": {"town": "Zürich"}}'),
        [("weather", {"properties": {"town": "Zürich"}})],
    ),
    Vector(
        "hermes",
        hermes(arguments='{"input": {"city": "Zürich"}, "days": 3}'),
        [("weather", {"input": {"city": "Zürich"}, "days": 3})],
    ),
    Vector("hermes", '<tool_call>{"name": "weather", "arguments": {"input": {"ci', [("weather", '{"input": {"ci')]),
    Vector("hermes", hermes("now", '{"input": {"a": 1}}'), [("now", {"input": {"a": 1}})]),
    Vector("hermes", hermes(arguments='{"city": "Zürich", "days": 3, }'), [ONE]),
    Vector(
        "hermes",
        hermes("note", '{"text": "a\nb\tc", "is_open": True}'),
        [("note", {"text": "a\nb\tc", "is_open": True})],
    ),
    Vector(
        "hermes",
        hermes("note", '{"text": "\\d+ \\u12 \\"", "parent": None}'),
        [("note", {"text": '\\d+ \\u12 "', "parent": None})],
    ),
    Vector("hermes", hermes("note", '{"text": "\\ud83e\\udd9c \\u00e9"}'), [("note", {"text": "🦜 é"})]),
    Vector("hermes", hermes("note", '{"text": "a < b", "tags": []}'), [("note", {"text": "a < b", "tags": []})]),
    Vector("longcat", '<longcat_tool_call>\n{"name": "now", "arguments": {}}\n</longcat_tool_call>', [NOW]),
    Vector("ernie45", "Hm.\n\n" + hermes() + "\n\n" + hermes("now", "{}"), [ONE, NOW], "Hm."),
    Vector("granite4", hermes() + "\n" + hermes("now", "{}"), [ONE, NOW]),
    Vector(
        "granite-20b-fc",
        f'<function_call> {{"name": "weather", "arguments": {ARGUMENTS}}} '
        '<function_call> {"name": "now", "arguments": {}}',
        [ONE, NOW],
    ),
    Vector(
        "internlm",
        f'I see.<|action_start|><|plugin|>\n{{"name": "weather", "parameters": {ARGUMENTS}}}\n<|action_end|>\n',
        [ONE],
        "I see.",
    ),
    # --------------------------------------------------------------------------------------------------- JSON alone
    Vector("llama3_json", f'{{"name": "weather", "parameters": {ARGUMENTS}}}', [ONE]),
    Vector(
        "llama3_json",
        f'<|python_tag|>{{"name": "weather", "parameters": {ARGUMENTS}}}; {{"name": "now", "parameters": {{}}}}',
        [ONE, NOW],
    ),
    Vector(
        "llama3_json",
        f'{{"name": "weather", "parameters": {ARGUMENTS}}}; {{"name": "now", "parameters": {{}}}}',
        [ONE, NOW],
    ),
    Vector(
        "llama3_json",
        f'Well: {{"type": "function", "name": "weather", "parameters": {ARGUMENTS}}} there.',
        [ONE],
        "Well: there.",
    ),
    Vector(
        "llama3_json",
        '{"name": "Ada", "parameters": {"city": "x"}}',
        [],
        '{"name": "Ada", "parameters": {"city": "x"}}',
    ),
    Vector("llama3_json", '{"name": "now"}', [], '{"name": "now"}'),
    Vector("llama3_json", 'As {"a": {"b": [1, 2]}} says.', [], 'As {"a": {"b": [1, 2]}} says.'),
    Vector(
        "llama3_json",
        f'[{{"name": "weather", "parameters": {ARGUMENTS}}}, {{"name": "now", "arguments": {{}}}}]',
        [ONE, NOW],
    ),
    Vector("llama3_json", '{"name": "now", "parameters": {}}; then {', [NOW], "; then {"),
    Vector(
        "granite",
        f'<|tool_call|>[{{"name": "weather", "arguments": {ARGUMENTS}}}, {{"name": "now", "arguments": {{}}}}]',
        [ONE, NOW],
    ),
    Vector("granite", '<tool_call>[{"name": "now", "arguments": {}}]', [NOW]),
    Vector(
        "jamba",
        f'Ok.\n<tool_calls>[\n{{"name": "weather", "arguments": {ARGUMENTS}}},\n'
        '{"name": "now", "arguments": {}}\n]</tool_calls>',
        [ONE, NOW],
        "Ok.",
    ),
    Vector("hunyuan_a13b", f'<tool_calls>[{{"name": "weather", "arguments": {ARGUMENTS}}}]</tool_calls>', [ONE]),
    Vector("hunyuan_a13b", "<tool_calls>[]</tool_calls>", []),
    Vector("jamba", "No.<tool_calls>[\n]</tool_calls>", [], "No."),
    Vector(
        "hunyuan_a13b",
        '<tool_calls>[{"name": "note", "arguments": {"text": "}\\"" 1}}, {"name": "now", "arguments": {}}]',
        [],
        '<tool_calls>[{"name": "note", "arguments": {"text": "}\\"" 1}}, {"name": "now", "arguments": {}}]',
        sent=[("note", '{"text": "}\\"" 1}'), ("now", "{}")],
    ),
    Vector("granite", "<|tool_call|>[]", []),
    Vector("mistral", "[TOOL_CALLS][]", []),
    Vector("mistral", f"[TOOL_CALLS][TOOL_CALLS]weather[ARGS]{ARGUMENTS}", [ONE]),
    Vector(
        "mistral",
        '[TOOL_CALLS]now[ARGS]{}[TOOL_CALLS]weather[ARGS]{"city": "Zürich", "days": }',
        [NOW],
        '[TOOL_CALLS]weather[ARGS]{"city": "Zürich", "days": }',
        sent=[("now", "{}"), ("weather", '{"city": "Zürich", "days": }')],
    ),
    Vector("deepseek_v31", f"Ok.{V_BEGIN}{V_END}", [], "Ok."),
    Vector("kimi_k2", f"{K_BEGIN}\n{K_END}Ok.", [], "Ok."),
    Vector(
        "kimi_k2",
        f"{K_BEGIN}{KIMI.format('weather:0', '{city: 1}')}{K_END}",
        [],
        f"{K_BEGIN}{KIMI.format('weather:0', '{city: 1}')}{K_END}",
        sent=[("weather", "{city: 1}")],
    ),
    Vector(
        "kimi_k2",
        f"{K_BEGIN}{KIMI.format('now:0', '{}')}{KIMI.format('now:0', '{}')}{K_END}",
        [NOW, NOW],
        ids=["functions.now:0", None],
    ),
    Vector(
        "deepseek_v3",
        V_BEGIN + V3.format("weather", '{"city": Zürich}') + V_END,
        [],
        V_BEGIN + V3.format("weather", '{"city": Zürich}') + V_END,
        sent=[("weather", '{"city": Zürich}')],
    ),
    Vector(
        "llama3_json",
        '{"name": "weather", "parameters": {"city": Zürich}}',
        [],
        '{"name": "weather", "parameters": {"city": Zürich}}',
        sent=[("weather", '{"city": Zürich}')],
    ),
    Vector(
        "jamba",
        '<tool_calls>[{"name": "now", "arguments": {}}, {"name": "weather", "arguments": {"a": [b}}]</tool_calls>',
        [NOW],
        '{"name": "weather", "arguments": {"a": [b}}]',
        sent=[("now", "{}"), ("weather", '{"a": [b}}')],
    ),
    Vector(
        "phi4_mini_json",
        f'functools[{{"name": "weather", "arguments": {ARGUMENTS}}}, {{"name": "now", "arguments": {{}}}}]',
        [ONE, NOW],
    ),
    Vector("phi4_mini_json", "Use functools.cache here.", [], "Use functools.cache here."),
    Vector(
        "xlam", f'[{{"name": "weather", "arguments": {ARGUMENTS}}}, {{"name": "now", "arguments": {{}}}}]', [ONE, NOW]
    ),
    Vector("xlam", f'Here:\n```json\n[{{"name": "weather", "arguments": {ARGUMENTS}}}]\n```', [ONE], "Here:"),
    Vector("xlam", '[TOOL_CALLS][{"name": "now", "arguments": {}}]', [NOW]),
    Vector("xlam", '<tool_call>[{"name": "now", "arguments": {}}]</tool_call>', [NOW]),
    Vector("xlam", "See [1] and [x](y): ```json\n[1]\n```", [], "See [1] and [x](y): ```json\n[1]\n```"),
    Vector("gigachat3", f'<|function_call|>{{"name": "weather", "arguments": {ARGUMENTS}}}', [ONE]),
    Vector("gigachat3", f'function call<|role_sep|>\n{{"name": "weather", "arguments": {ARGUMENTS}}}', [ONE]),
    Vector("gigachat3", f'Ok. function call{{"name": "weather", "arguments": {ARGUMENTS}}}', [ONE], "Ok."),
    Vector("gigachat3", "A function call needs a name.", [], "A function call needs a name."),
    Vector("cohere_command3", cohere(("weather", ARGUMENTS), ("now", "{}")), [ONE, NOW], ids=["0", "1"]),
    Vector(
        "cohere_command3",
        '<|START_ACTION|>[{"tool_call_id": 7, "tool_name": "now"}, {"tool_call_id": "7", "tool_name": "now"}]',
        [NOW, NOW],
        ids=["7", None],
    ),
    Vector("cohere_command3", "I look." + cohere(("note", DEEP_JSON)), [DEEP], "I look."),
    Vector(
        "cohere_command3",
        cohere(("weather", '{"city": "Zür')).partition("}")[0],
        [("weather", '{"city": "Zür')],
    ),
    Vector("cohere_command3", "<|START_ACTION|>[]<|END_ACTION|>", []),
    Vector(
        "apertus",
        f'Ok. <|tools_prefix|>[{{"weather": {ARGUMENTS}}}, {{"now": {{}}}}]<|tools_suffix|>',
        [ONE, NOW],
        "Ok.",
    ),
    Vector("apertus", f'<|tools_prefix|>[{{"weather": {ARGUMENTS}, "now": {{}}}}]<|tools_suffix|>', [ONE, NOW]),
    Vector("apertus", f'<|tools_prefix|>[{{"note": {DEEP_JSON}}}]', [DEEP]),
    Vector("apertus", '<|tools_prefix|>[{"weather": {"city": "Zür', [("weather", '{"city": "Zür')]),
    Vector(
        "apertus",
        '<|tools_prefix|>[{"now": {}, "weather": {"city": x}}]',
        [NOW],
        '"weather": {"city": x}}]',
        sent=[("now", "{}"), ("weather", '{"city": x}')],
    ),
    Vector(
        "apertus", '<|tools_prefix|>[{"now": 3}]<|tools_suffix|>', [], '<|tools_prefix|>[{"now": 3}]<|tools_suffix|>'
    ),
    Vector("apertus", "<|tools_prefix|>[{}]", [], "<|tools_prefix|>[{}]"),
    # ------------------------------------------------------------------------------------------- headers and JSON
    Vector(
        "mistral",
        f'[TOOL_CALLS][{{"name": "weather", "arguments": {ARGUMENTS}}}, {{"name": "now", "arguments": {{}}}}]',
        [ONE, NOW],
    ),
    Vector("mistral", f"I look.[TOOL_CALLS]weather[ARGS]{ARGUMENTS}[TOOL_CALLS]now[ARGS]{{}}", [ONE, NOW], "I look."),
    Vector("mistral", f"[TOOL_CALLS]weather{ARGUMENTS}[TOOL_CALLS]now{{}}", [ONE, NOW]),
    Vector("mistral", f"[TOOL_CALLS]weather[CALL_ID]aB3dE6gH9[ARGS]{ARGUMENTS}", [ONE], ids=["aB3dE6gH9"]),
    Vector("mistral", "[TOOL_CALLS] [1]", [], "[TOOL_CALLS] [1]"),
    Vector(
        "deepseek_v3",
        f"Ok.{V_BEGIN}{V3.format('weather', ARGUMENTS)}\n{V3.format('now', '{}')}{V_END}",
        [ONE, NOW],
        "Ok.",
    ),
    Vector("deepseek_v3", f"{V_BEGIN}{V3.format('note', DEEP_JSON)}{V_END}", [DEEP]),
    Vector(
        "deepseek_v3", f"{V_BEGIN}{V3.format('weather', ARGUMENTS).partition('rich')[0]}", [("weather", '{"city": "Zü')]
    ),
    Vector("deepseek_v31", f"{V_BEGIN}{V31.format('weather', ARGUMENTS)}{V31.format('now', '{}')}{V_END}", [ONE, NOW]),
    Vector("deepseek_v31", f"{V_BEGIN}x y<｜tool▁sep｜>{{}}", [], f"{V_BEGIN}x y<｜tool▁sep｜>{{}}"),
    Vector(
        "kimi_k2",
        f"Ok.{K_BEGIN}{KIMI.format('weather:0', ARGUMENTS)}{KIMI.format('now:1', '{}')}{K_END}",
        [ONE, NOW],
        "Ok.",
        ["functions.weather:0", "functions.now:1"],
    ),
    Vector(
        "kimi_k2", f"{K_BEGIN}\n{KIMI.format('note:2 ', ' ' + DEEP_JSON)}\n{K_END}", [DEEP], ids=["functions.note:2"]
    ),
    Vector("kimi_k2", KIMI.format("now:0", ""), [NOW], ids=["functions.now:0"]),
    Vector("plamo3", f"Ok.{P_BEGIN}{plamo('weather', ARGUMENTS)}{plamo('now', '{}')}{P_END}", [ONE, NOW], "Ok."),
    Vector("plamo3", f"{P_BEGIN}{plamo('note', DEEP_JSON)}", [DEEP]),
    Vector("plamo3", P_BEGIN + plamo("weather", ARGUMENTS).partition("<|plamo:end_tool_arguments")[0], [ONE]),
    Vector("plamo3", P_BEGIN + plamo("weather", ARGUMENTS).partition("rich")[0], [("weather", '{"city": "Zü')]),
    Vector("plamo3", f"{P_BEGIN}{P_END}Hm.", [], "Hm."),
    # ---------------------------------------------------------------------------------------------------------- tags
    Vector("qwen3_coder", "Let me see.\n\n" + coder("weather", city="Zürich", days="3"), [ONE], "Let me see."),
    Vector("qwen3_coder", coder("weather", city="Zürich", days="3") + "\n" + coder("now"), [ONE, NOW]),
    Vector("qwen3_coder", coder("note", text=DEEP_TEXT, tags='["x", "y z"]', extra="{'a': 1.5, 'ok': True}"), [DEEP]),
    Vector("qwen3_coder", coder("note", text="\n  keep\n\n"), [("note", {"text": "\n  keep\n\n"})]),
    Vector(
        "qwen3_coder",
        coder("note", text="123", is_open="True", ratio="1e3", parent="null"),
        [("note", {"text": "123", "is_open": True, "ratio": 1000.0, "parent": None})],
    ),
    Vector(
        "qwen3_coder",
        coder("note", text="a", parent="b", is_open="maybe", ratio="much"),
        [("note", {"text": "a", "parent": "b", "is_open": "maybe", "ratio": "much"})],
    ),
    Vector(
        "qwen3_coder",
        coder("weather", city="x", days="4.0", other="5"),
        [("weather", {"city": "x", "days": 4, "other": "5"})],
    ),
    Vector("qwen3_coder", "<function=now>\n</function>", [NOW]),
    Vector(
        "qwen3_coder",
        "<tool_call>\n<function=weather>\n<parameter=city>\nZürich\n</function>\n</tool_call>",
        [("weather", {"city": "Zürich"})],
    ),
    Vector("qwen3_coder", "<tool_call>\n<function=weather>\n<parameter=city>\nZür", [("weather", '{"city": "Zür')]),
    Vector("qwen3_coder", "<tool_call>\n<function=weather>\n<parameter=days>\n3", [("weather", "")]),
    Vector(
        "qwen3_coder",
        "<tool_call>\n<function=wea ther>\n</function>",
        [],
        "<tool_call>\n<function=wea ther>\n</function>",
    ),
    Vector("qwen3_coder", "<tool_call>\n<function=weather>\n<para", [], "<tool_call>\n<function=weather>\n<para"),
    Vector(
        "qwen3_coder",
        "<tool_call>\n<function=now>\nwell</function>\n</tool_call>",
        [],
        "<tool_call>\n<function=now>\nwell</function>\n</tool_call>",
    ),
    Vector("qwen3_coder", coder("note", tags='["</parameter>", "b"]'), [("note", {"tags": ["</parameter>", "b"]})]),
    Vector("qwen3_coder", coder("note", tags='["a', text="b"), [("note", {"tags": '["a', "text": "b"})]),
    Vector("qwen3_coder", hermes(), [ONE]),
    # the end of a value or of a call is missing
    Vector(
        "qwen3_coder",
        "<tool_call>\n<function=weather>\n<parameter=city>\nZürich\n<parameter=days>\n3\n</function>\n</tool_call>",
        [ONE],
    ),
    Vector("qwen3_coder", "<function=weather><parameter=city>Zürich<parameter=days>3</function>\n", [ONE]),
    Vector(
        "qwen3_coder",
        "<function=weather><parameter=city>Zürich<parameter=days>3</function>\n\n<function=now>\n</function>Bye.",
        [ONE, NOW],
        "Bye.",
    ),
    Vector(
        "qwen3_coder",
        coder("note", text="a <parameter=b>c</parameter", tags='["<parameter=x>", "</function>"]'),
        [("note", {"text": "a <parameter=b>c</parameter", "tags": ["<parameter=x>", "</function>"]})],
    ),
    Vector(
        "qwen3_coder",
        coder("note", text="f = '</function>' + '<parameter=')\n</function>\nx"),
        [("note", {"text": "f = '</function>' + '<parameter=')\n</function>\nx"})],
    ),
    Vector(
        "qwen3_coder", "<function=f>\n<parameter=a>\n1\n<parameter=b>\n2\n</function>", [("f", {"a": "1", "b": "2"})]
    ),
    Vector(
        "qwen3_coder",
        "<tool_call>\n<function=weather>\n<parameter=city>\nZürich\n</parameter>\n<parameter=days>\n3\n</parameter>\n"
        "<tool_call>\n<function=now>\n</function>\n</tool_call>",
        [ONE, NOW],
    ),
    Vector(
        "qwen3_coder",
        "<tool_call>\n<function=weather>\n<parameter=city>\nZürich\n<function=now>\n</function>\n</tool_call>",
        [("weather", {"city": "Zürich"}), NOW],
    ),
    Vector(
        "qwen3_coder",
        coder("note", text="<function=x> <tool_call>"),
        [("note", {"text": "<function=x> <tool_call>"})],
    ),
    Vector("qwen3_coder", coder("weather", city="<![CDATA[Zürich]]>", days="<![CDATA[3]]>"), [ONE]),
    Vector(
        "qwen3_coder",
        coder("note", text="<![CDATA[a </parameter> ]]]]><![CDATA[> b]]>", tags="\n <![CDATA[[1, 2]]]> "),
        [("note", {"text": "a </parameter> ]]> b", "tags": [1, 2]})],
    ),
    Vector("qwen3_coder", coder("note", text="<![CDATA[a]]>b <![CDATA[c]]>"), [("note", {"text": "ab <![CDATA[c]]>"})]),
    Vector("qwen3_coder", coder("note", text="<![CDATAb"), [("note", {"text": "<![CDATAb"})]),
    Vector("qwen3_coder", "<tool_call>\n<tool_call>\n" + coder("now").removeprefix("<tool_call>\n"), [NOW]),
    Vector(
        "qwen3_coder",
        coder("now").replace("</function>", "</function>\n</function>") + "\n</tool_call>\nBye.",
        [NOW],
        "Bye.",
    ),
    Vector("qwen3_coder", "<tool_call>\n</tool_call>", []),
    Vector("qwen3_coder", coder("weather", arguments='{"city": "Zürich", "days": 3}'), [ONE]),
    Vector("qwen3_coder", coder("weather", properties="{'city': 'Zürich', 'days': 3}"), [ONE]),
    Vector("qwen3_coder", coder("weather", input="no"), [("weather", {"input": "no"})]),
    Vector("step3p5", coder("weather", city="Zürich", days="3").replace("\n</parameter>", ""), [ONE]),
    Vector(
        "mimo",
        "<tool_call>\n<function=weather>\n<parameter=city>Zürich<parameter=days>3</function>\n</tool_call>",
        [ONE],
    ),
    Vector(
        "seed_oss",
        coder("weather", city="Zürich", days="3")
        .replace("tool_call>", "seed:tool_call>")
        .replace("</parameter>\n", ""),
        [ONE],
    ),
    Vector("glm45", glm("weather", city="Zürich", days="3").replace("</arg_value>\n", ""), [ONE]),
    Vector("glm47", glm("weather", "", city="Zürich", days="3").replace("</arg_value>", "") + "\n", [ONE]),
    Vector(
        "glm47",
        "<tool_call>weather<arg_key>city</arg_key><arg_value>Zürich<arg_key>days</arg_key><arg_value>3"
        + glm("now", ""),
        [ONE, NOW],
    ),
    Vector("glm45", glm("note", text="<![CDATA[a</arg_value>]]>"), [("note", {"text": "a</arg_value>"})]),
    Vector("glm45", "<tool_call></tool_call>Hm.", [], "Hm."),
    Vector("glm45", "<tool_call><tool_call>now</tool_call></tool_call>", [NOW]),
    Vector(
        "minimax_m2",
        f"<minimax:tool_call>\n{minimax('weather', city='Zürich', days='3')}</minimax:tool_call>".replace(
            "</parameter>\n", ""
        ),
        [ONE],
    ),
    Vector(
        "deepseek_v32",
        "<｜DSML｜function_calls>\n"
        + dsml("weather", ("city", True, "Zürich"), ("days", False, "3")).replace("</｜DSML｜parameter>\n", "")
        + "</｜DSML｜function_calls>",
        [ONE],
    ),
    Vector(
        "deepseek_v4",
        "<｜DSML｜tool_calls>\n"
        + dsml("weather", ("city", True, "Zürich"), ("days", False, "3")).replace("</｜DSML｜parameter>\n", "")
        + "</｜DSML｜tool_calls>",
        [ONE],
    ),
    Vector(
        "deepseek_v4",
        "<｜DSML｜tool_calls>\n" + dsml("weather", ("input", False, ARGUMENTS)) + "</｜DSML｜tool_calls>",
        [ONE],
    ),
    Vector("deepseek_v4", "<｜DSML｜tool_calls>\n</｜DSML｜tool_calls>", []),
    Vector(
        "step3",
        f"{S_BEGIN}\n{steptml('weather', city='Zürich', days='3')}\n{S_END}".replace("</steptml:parameter>\n", ""),
        [ONE],
    ),
    Vector(
        "hy_v3",
        f"<tool_calls>{hunyuan('weather', city='Zürich', days='3')}</tool_calls>".replace("</arg_value>\n", ""),
        [ONE],
    ),
    Vector("minicpm5", minicpm("weather", city="Zürich", days="3").replace("</param>", ""), [ONE]),
    Vector("minicpm5", minicpm("weather", city="<![CDATA[Zürich]]>", days="3"), [ONE]),
    Vector("minicpm5", minicpm("weather", properties="{'city': 'Zürich', 'days': 3}"), [ONE]),
    Vector("step3p5", coder("weather", city="Zürich", days="3"), [ONE]),
    Vector("seed_oss", coder("weather", city="Zürich", days="3").replace("tool_call>", "seed:tool_call>"), [ONE]),
    Vector(
        "mimo",
        "<tool_call>\n<function=note>\n<parameter=text> a\n</parameter>\n</function>\n</tool_call>",
        [("note", {"text": " a\n"})],
    ),
    Vector(
        "step3",
        f"Ok.\n{S_BEGIN}\n{steptml('weather', city='Zürich', days='3')}\n{steptml('now')}\n{S_END}",
        [ONE, NOW],
        "Ok.",
    ),
    Vector("step3", f"{S_BEGIN}{steptml('weather', city='Zürich', days='3')}{S_END}".replace("\n", ""), [ONE]),
    Vector(
        "step3",
        f"{S_BEGIN}\n{steptml('now')}\n{S_END}".replace(STEP, STEP + "\n").replace("invoke><", "invoke>\n<"),
        [NOW],
    ),
    Vector("step3", steptml("note", text=DEEP_TEXT, tags=TAGS, extra=EXTRA), [DEEP]),
    Vector(
        "step3",
        f'{S_BEGIN}{STEP}<steptml:invoke name="weather"><steptml:parameter name="city">Zür',
        [("weather", '{"city": "Zür')],
    ),
    Vector("step3", f"{S_BEGIN}{STEP}nothing", [], f"{S_BEGIN}{STEP}nothing"),
    Vector(
        "hy_v3",
        f"Ok.<tool_calls>\n{hunyuan('weather', city='Zürich', days='3')}{hunyuan('now')}</tool_calls>",
        [ONE, NOW],
        "Ok.",
    ),
    Vector("hy_v3", f"<tool_calls>{hunyuan('note', text=DEEP_TEXT, tags=TAGS, extra=EXTRA)}</tool_calls>", [DEEP]),
    Vector("hy_v3", "<tool_calls><tool_call>now<tool_sep></tool_call></tool_calls>", [NOW]),
    Vector("hy_v3", "<tool_calls>no call</tool_calls>", [], "<tool_calls>no call</tool_calls>"),
    Vector("minicpm5", "Ok. " + minicpm("weather", city="Zürich", days="3") + "\n" + minicpm("now"), [ONE, NOW], "Ok."),
    Vector("minicpm5", minicpm("note", text=DEEP_TEXT, tags=TAGS, extra=EXTRA), [DEEP]),
    Vector(
        "minicpm5", '<function name="weather">\n<param name="city">Zürich</param>\n', [("weather", '{"city": "Zürich"')]
    ),
    Vector("minicpm5", '<function name="a b"></function>', [], '<function name="a b"></function>'),
    Vector(
        "deepseek_v41",
        "Ok.<｜DSML｜ calls>\n"
        + (dsml("weather", ("city", True, "Zürich"), ("days", False, "3")) + dsml("now")).replace("DSML｜", "DSML｜ ")
        + "</｜DSML｜ calls>",
        [ONE, NOW],
        "Ok.",
    ),
    Vector("glm45", "Ok.\n" + glm("weather", city="Zürich", days="3") + "\n" + glm("now"), [ONE, NOW], "Ok."),
    Vector("glm45", glm("note", text=DEEP_TEXT, tags='["x", "y z"]', extra='{"a": 1.5, "ok": true}'), [DEEP]),
    Vector("glm47", glm("weather", "", city="Zürich", days="3") + glm("now", ""), [ONE, NOW]),
    Vector("glm45", "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Zü", [("weather", '{"city": "Zü')]),
    Vector("glm45", "<tool_call>not a name</tool_call>", [], "<tool_call>not a name</tool_call>"),
    Vector(
        "minimax_m2",
        f"Ok.\n<minimax:tool_call>\n{minimax('weather', city='Zürich', days='3')}{minimax('now')}</minimax:tool_call>",
        [ONE, NOW],
        "Ok.",
    ),
    Vector(
        "minimax_m2",
        f"<minimax:tool_call>\n{minimax('note', text=DEEP_TEXT, tags=TAGS, extra=EXTRA)}</minimax:tool_call>",
        [DEEP],
    ),
    Vector(
        "deepseek_v32",
        "Ok.\n\n<｜DSML｜function_calls>\n"
        + dsml("weather", ("city", True, "Zürich"), ("days", False, "3"))
        + dsml("now")
        + "</｜DSML｜function_calls>",
        [ONE, NOW],
        "Ok.",
    ),
    Vector(
        "deepseek_v4",
        "<｜DSML｜tool_calls>\n"
        + dsml("note", ("text", True, DEEP_TEXT), ("tags", False, TAGS), ("extra", False, EXTRA))
        + "</｜DSML｜tool_calls>",
        [DEEP],
    ),
    Vector(
        "deepseek_v32",
        f"<｜DSML｜function_calls>\n{dsml('f', ('n', True, '3'), ('m', False, 'null'))}</｜DSML｜function_calls>",
        [("f", {"n": "3", "m": None})],
    ),
    Vector("dots", f"<dots_function_call>\n{minimax('now')}</dots_function_call>", [NOW]),
    Vector(
        "k2_horizon",
        f"Ok.{I_BEGIN}{ifm('weather', city='Zürich', days='3')}\n{ifm('now')}{I_END}No.",
        [ONE, NOW],
        "Ok.No.",
    ),
    Vector("k2_horizon", f"{I_BEGIN}{ifm('note', text=DEEP_TEXT, tags=TAGS, extra=EXTRA)}{I_END}", [DEEP]),
    Vector(
        "k2_horizon",
        f'{I_BEGIN}<ifm|tool_call>{{"name": "weather", "arguments": {ARGUMENTS}}}</ifm|tool_call>'
        f'<ifm|tool_call>{{"name": "now", "arguments": {{}}}}</ifm|tool_call>{I_END}',
        [ONE, NOW],
    ),
    Vector(
        "k2_horizon",
        f"{I_BEGIN}<ifm|tool_call>note<ifm|arg_key>text</ifm|arg_key><ifm|arg_type>string</ifm|arg_type>"
        "<ifm|arg_value>1</ifm|arg_value><ifm|arg_key>x</ifm|arg_key><ifm|arg_type>array[integer]</ifm|arg_type>"
        f"<ifm|arg_value>[1]</ifm|arg_value><ifm|arg_key>y</ifm|arg_key><ifm|arg_value>1</ifm|arg_value></ifm|tool_call>{I_END}",
        [("note", {"text": "1", "x": [1], "y": "1"})],
    ),
    Vector("k2_horizon", f"{I_BEGIN}junk{I_END}", [], f"{I_BEGIN}junk{I_END}"),
    Vector("k2_horizon", f"{I_BEGIN}<ifm|tool_call>now", [], f"{I_BEGIN}<ifm|tool_call>now"),
    Vector("k2_horizon", f"{I_BEGIN}{I_END}", []),
    Vector(
        "minimax_m3",
        f"Ok.{M_BEGIN}{m3('weather', '<city>Zürich</city><days>3</days>')}\n{m3('now', '')}\n{M_END}",
        [ONE, NOW],
        "Ok.",
    ),
    Vector(
        "minimax_m3",
        M_BEGIN
        + m3(
            "note", "<text>{}</text><tags><item>x</item><item>y z</item></tags><extra><a>1.5</a><ok>true</ok></extra>"
        ).replace("{}", DEEP_TEXT)
        + M_END,
        [DEEP],
    ),
    Vector(
        "minimax_m3",
        M_BEGIN + m3("note", "<tags></tags><extra></extra><other><k>a</k><k>b</k> c</other><more>1</more>") + M_END,
        [("note", {"tags": [], "extra": {}, "other": {"k": ["a", "b"], "$text": " c"}, "more": "1"})],
    ),
    Vector("minimax_m3", M_BEGIN + m3("weather", "<city>Zürich<days>03</days>") + M_END, [ONE]),
    Vector("minimax_m3", M_BEGIN + m3("weather", "<city>Zürich</city><days>3") + M_END, [ONE]),
    Vector(
        "minimax_m3",
        M_BEGIN + m3("weather", "<input><city>Zürich</city><days>3</days></input>") + M_END,
        [ONE],
    ),
    Vector("minimax_m3", M_BEGIN + m3("weather", "<city><![CDATA[Zürich]]></city><days>3</days>") + M_END, [ONE]),
    Vector(
        "minimax_m3",
        M_BEGIN + m3("weather", "<city>Zürich</city><days>3").removesuffix(f"{NS}</invoke>"),
        [("weather", '{"city": "Zürich"')],
    ),
    Vector("minimax_m3", M_BEGIN + m3("weather", "<city>Zürich</city><days>3</days>").replace('"', "'") + M_END, [ONE]),
    Vector("minimax_m3", f"{M_BEGIN}{M_END}Hm.", [], "Hm."),
    Vector("minimax_m3", f"{M_BEGIN}{NS}</city>", [], f"{M_BEGIN}{NS}</city>"),
    Vector("qwen3_coder", coder("weather", city="Zürich", days="03"), [ONE]),
    Vector(
        "kimi_k3",
        f"Ok.{X_BEGIN}"
        + xtml(1, "weather", ("city", "string", "Zürich"), ("days", "number", "3"))
        + xtml(2, "now")
        + X_END,
        [ONE, NOW],
        "Ok.",
    ),
    Vector(
        "kimi_k3",
        X_BEGIN
        + xtml(1, "note", ("text", "string", DEEP_TEXT), ("tags", "array", TAGS), ("extra", "object", EXTRA))
        + X_END,
        [DEEP],
    ),
    Vector(
        "kimi_k3",
        f"{X_BEGIN}{xtml(1, 'f', ('a &quot;b&amp;quot;', 'string', '&amp; 1'), ('n', 'null', 'null'))}{X_END}",
        [("f", {'a "b&quot;': "&amp; 1", "n": None})],
    ),
    Vector(
        "kimi_k3",
        f"{X_BEGIN}{xtml(1, 'weather', ('city', 'string', 'Zürich')).partition('rich')[0]}",
        [("weather", '{"city": "Zü')],
    ),
    # -------------------------------------------------------------------------------------------------------- Python
    Vector("pythonic", "[weather(city='Zürich', days=3), now()]", [ONE, NOW]),
    Vector(
        "pythonic", "[note(text='a \"b\" \\\\ </x>\\n🦜', tags=['x', \"y z\"], extra={'a': 1.5, 'ok': True})]", [DEEP]
    ),
    Vector(
        "pythonic",
        "[note(text='a, (b) ]', parent=None, is_open=False)]",
        [("note", {"text": "a, (b) ]", "parent": None, "is_open": False})],
    ),
    Vector("pythonic", "[weather('Zürich', 3)]", [ONE]),
    Vector(
        "pythonic",
        "[note(text='sed -n '360,450p' a.py'), now()]",
        [("note", {"text": "sed -n '360,450p' a.py"}), NOW],
    ),
    Vector(
        "lfm2",
        "<|tool_call_start|>[note(text='python -c \"from x import y\nprint(y(3*x, s='\\,'))\"')]<|tool_call_end|>",
        [("note", {"text": "python -c \"from x import y\nprint(y(3*x, s='\\,'))\""})],
    ),
    Vector(
        "lfm2",
        "<|tool_call_start|>[note(text='a\x00b\r\nc\td')]<|tool_call_end|>",
        [("note", {"text": "a\x00b\r\nc\td"})],
    ),
    Vector("lfm2", "<|tool_call_start|>[]<|tool_call_end|>Hm.", [], "Hm."),
    Vector("lfm2", "<|tool_call_start|> <|tool_call_start|>[now()]<|tool_call_end|>", [NOW]),
    Vector("olmo3", "<function_calls>\n</function_calls>", []),
    Vector(
        "olmo3",
        "<function_calls>note(text='echo 'a' 'b'')\nnow()</function_calls>",
        [("note", {"text": "echo 'a' 'b'"}), NOW],
    ),
    Vector("pythonic", "[weather(city='Zürich', days=03)]", [ONE]),
    Vector("pythonic", "[weather(city=007)]", [("weather", {"city": "007"})]),
    Vector(
        "pythonic",
        "[note(tags={'b', 'a', 'b'}, extra={'a': 07, 'b': {1}})]",
        [("note", {"tags": ["b", "a"], "extra": {"a": 7, "b": [1]}})],
    ),
    Vector("pythonic", "[note(tags={'it's', 'a', 'it's'})]", [("note", {"tags": ["it's", "a"]})]),
    Vector("pythonic", "[note(text='one ' 'two', ratio=-1)]", [("note", {"text": "one two", "ratio": -1})]),
    Vector(
        "pythonic",
        "[weather('Zürich', 3, 'C', 'more'), now('x')]",
        [("weather", {"city": "Zürich", "days": 3, "unit": "C"})],
        ", now('x')]",
    ),
    Vector("pythonic", "[weather(city='a', city='b')]", [("weather", {"city": "a"})]),
    Vector("pythonic", "[weather(input={'city': 'Zürich', 'days': 3})]", [ONE]),
    Vector("pythonic", "[weather(city=Zürich)]", [("weather", {"city": "Zürich"})]),
    Vector("pythonic", '[note(text="""a "b"\nc""", ratio=-1.5e3)]', [("note", {"text": 'a "b"\nc', "ratio": -1500.0})]),
    Vector("pythonic", "[weather(city='Zürich', days=3), now(", [ONE], ", now("),
    Vector("pythonic", "[weather(city='Zürich', days=", [("weather", '{"city": "Zürich"')]),
    Vector("pythonic", "See [1], [f(x)] and [now].", [], "See [1], [f(x)] and [now]."),
    Vector("llama4_pythonic", '<|python_start|>[weather(city="Zürich", days=3), now()]<|python_end|>', [ONE, NOW]),
    Vector("llama4_pythonic", "[now()]", [NOW]),
    Vector(
        "lfm2",
        '<|tool_call_start|>[weather(city="Zürich", days=3), now()]<|tool_call_end|>Checking.',
        [ONE, NOW],
        "Checking.",
    ),
    Vector("olmo3", 'Ok.\n<function_calls>weather(city="Zürich", days=3)\nnow()</function_calls>', [ONE, NOW], "Ok."),
    Vector(
        "olmo3",
        '<function_calls>note(text="a", is_open=true, parent=null, extra={"ok": true, "b": [null]})</function_calls>',
        [("note", {"text": "a", "is_open": True, "parent": None, "extra": {"ok": True, "b": [None]}})],
    ),
    # ----------------------------------------------------------------------------------------------------- bare keys
    Vector(
        "gemma4",
        f"Ok.<|tool_call>call:weather{{city:{Q}Zürich{Q},days:3}}<tool_call|><|tool_call>call:now{{}}<tool_call|>",
        [ONE, NOW],
        "Ok.",
    ),
    Vector(
        "gemma4",
        f"<|tool_call>call:note{{text:{Q}{DEEP_TEXT}{Q},tags:[{Q}x{Q},{Q}y z{Q}],extra:{{a:1.5,ok:true}}}}<tool_call|>",
        [DEEP],
    ),
    Vector(
        "gemma4",
        f"<|tool_call>call:note{{text:{Q}{{a:[1,]}}{Q}, extra:{{}}, tags:[], parent:null}}<tool_call|>",
        [("note", {"text": "{a:[1,]}", "extra": {}, "tags": [], "parent": None})],
    ),
    Vector("gemma4", f"<|tool_call>call:weather{{city:{Q}Zü", [("weather", '{"city": "Zü')]),
    Vector("gemma4", f"<|tool_call>call:weather{{city:{Q}Zürich{Q},days:3<tool_call|>", [ONE]),
    Vector("gemma4", f"<|tool_call>weather{{city:{Q}Zürich{Q},days:3}}<tool_call|>", [ONE]),
    Vector("gemma4", f"<|tool_call>:weather{{city:{Q}Zürich{Q},days:3}}<tool_call|>", [ONE]),
    Vector("gemma4", f"call:weather{{city:{Q}Zürich{Q},days:3}}<tool_call|>Bye.", [ONE], "Bye."),
    Vector("gemma4", f"Ok. call:weather(city:{Q}Zürich{Q},days:3)<tool_call|>", [ONE], "Ok."),
    Vector("gemma4", f"<|tool_call>call:weather({{city:{Q}Zürich{Q},days:3}})<tool_call|>", [ONE]),
    Vector("gemma4", "<|tool_call><|tool_call>call:now{}<tool_call|><tool_call|>", [NOW]),
    Vector("gemma4", "Ok.<|tool_call><tool_call|>", [], "Ok."),
    Vector(
        "gemma4", "<|tool_call>call:note{parent:null,ratio:07}<tool_call|>", [("note", {"parent": None, "ratio": 7})]
    ),
    Vector("gemma4", "<|tool_call>call:weather{city:12}<tool_call|>", [("weather", {"city": "12"})]),
    Vector("gemma4", f"<|tool_call>call:weather{{input:{{city:{Q}Zürich{Q},days:3}}}}<tool_call|>", [ONE]),
    Vector("gemma4", "<|tool_call>other{}<tool_call|>", [], "<|tool_call>other{}<tool_call|>"),
    Vector("gemma4", "I call:other{a:1} and call: weather", [], "I call:other{a:1} and call: weather"),
    Vector("functiongemma", "<start_function_call>now{}<end_function_call>", [NOW]),
    Vector(
        "functiongemma",
        "<start_function_call>call:weather{city:<escape>Zürich<escape>,days:3}<end_function_call><start_function_call>call:now{}<end_function_call>",
        [ONE, NOW],
    ),
]
INVOKE = '<|content_invoke_tool_json|>{{"name": "{}", "args": {}}}<|end_message|>'
ATEM = "<|message|><atem:function_calls>\n{}</atem:function_calls><|eom|>"


def atem(name: str, **values: str) -> str:
    lines = "".join(f'<atem:parameter name="{key}">{value}</atem:parameter>\n' for key, value in values.items())
    return f'<atem:invoke name="{name}">\n{lines}</atem:invoke>\n'


# Calls that are messages: their marks are tokens in every tokenizer.
HARMONY_VECTORS = [
    Vector("inkling", INVOKE.format("weather", ARGUMENTS) + INVOKE.format("now", "{}"), [ONE, NOW]),
    Vector("inkling", "Ok." + INVOKE.format("note", DEEP_JSON), [DEEP], "Ok."),
    Vector("inkling", INVOKE.format("weather", ARGUMENTS).partition("rich")[0], [("weather", '{"city": "Zü')]),
    Vector("muse", ATEM.format(atem("weather", city="Zürich", days="3")) + ATEM.format(atem("now.now")), [ONE, NOW]),
    Vector("muse", ATEM.format(atem("note", text=DEEP_TEXT, tags=TAGS, extra=EXTRA) + atem("now")), [DEEP, NOW]),
    Vector("muse", "Ok. " + ATEM.format(atem("now")).replace("eom", "eot"), [NOW], "Ok."),
    Vector("muse", f"As in <atem:function_calls>{atem('now')}.", [], f"As in <atem:function_calls>{atem('now')}."),
    Vector("openai", HARMONY.format("weather", ARGUMENTS), [ONE]),
    Vector("openai", "<|channel|>final<|message|>Four.", [], "Four."),
    Vector(
        "openai",
        "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant"
        + HARMONY.format("weather", ARGUMENTS)
        + "<|start|>assistant"
        + HARMONY.format("now", "{}"),
        [ONE, NOW],
        "I look.",
    ),
    Vector(
        "openai",
        "<|start|>assistant to=functions.note<|channel|>commentary json<|message|>" + DEEP_JSON + "<|call|>",
        [DEEP],
    ),
    Vector("openai", HARMONY.format("weather", ARGUMENTS).partition("rich")[0], [("weather", '{"city": "Zü')]),
]
