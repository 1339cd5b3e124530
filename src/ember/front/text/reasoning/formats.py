"""The reasoning formats, as data: which marks a family writes around its reasoning, and how it is recognised.

The names are those of vLLM's `--reasoning-parser`.
"""

from __future__ import annotations

from dataclasses import dataclass

from ember.front.text.reasoning.messages import INKLING, MUSE, Frames

OFF = frozenset({"none", "off"})  # overrides that turn the splitting off


@dataclass(frozen=True, slots=True)
class Tags:
    """How one family writes its reasoning. Every mark may be special tokens, text, or both."""

    starts: tuple[str, ...] = ("<think>",)  # spellings
    ends: tuple[str, ...] = ("</think>",)
    opens: bool = False  # the output begins inside reasoning where the prompt says nothing to the contrary
    broken_by: tuple[str, ...] = ()  # marks of tool calls that end the reasoning as well
    wrapper: tuple[str, str] | None = None  # what stands around the answer
    dropped: tuple[str, ...] = ()  # marks that are shown nowhere: those around an answer, and of messages
    label: str = ""  # the begin of the reasoning's text that names it and may be missing
    blanks: str = "\n"  # characters that only set the reasoning apart from its marks
    has_citations: bool = False  # see citations.py
    gap: str = "\n\n"  # between the end and the answer
    in_content: bool = False  # the reasoning stays in the content, with its marks
    is_harmony: bool = False  # channels instead of marks: see harmony.py
    frames: Frames | None = None  # messages with headers instead of marks: see messages.py
    has_suffix: bool = False  # a checkpoint may have a suffix of its own in its marks: <think:1a2b>


_THINK = Tags()
_ALWAYS = Tags(opens=True)
_QWEN = Tags(broken_by=("<tool_call>",))
_STEP = Tags(opens=True, broken_by=("<tool_call>",))
_DEEPSEEK = Tags(gap="")
_K3 = ("<|open|>response<|sep|>", "<|close|>response<|sep|>", "<|close|>message<|sep|>")
_COHERE = ("<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_TEXT|>", "<|END_TEXT|>")

FORMATS: dict[str, Tags] = {
    "qwen3": _QWEN,
    "deepseek_r1": _ALWAYS,
    "deepseek_v3": _DEEPSEEK,
    "deepseek_v31": _DEEPSEEK,
    "deepseek_v32": _DEEPSEEK,
    "deepseek_v4": Tags(broken_by=("<｜DSML｜tool_calls>",), gap=""),
    "deepseek_v41": Tags(broken_by=("<｜DSML｜ calls>",), gap=""),
    "openai_gptoss": Tags(is_harmony=True, gap=""),
    "gemma4": Tags(("<|channel>",), ("<channel|>",), broken_by=("<|tool_call>",), label="thought\n", gap=""),
    "glm45": Tags(broken_by=("<tool_call>",), gap="\n"),
    "glm47": Tags(broken_by=("<tool_call>",), gap=""),
    "mistral": Tags(("[THINK]",), ("[/THINK]",), broken_by=("[TOOL_CALLS]",), gap=""),
    "nemotron_v3": _QWEN,
    "minimax_m2": Tags(opens=True, broken_by=("<minimax:tool_call>",)),
    "minimax_m2_append_think": Tags(opens=True, in_content=True),
    "minimax_m3": Tags(("<mm:think>",), ("</mm:think>",)),
    "kimi_k2": Tags(broken_by=("<|tool_calls_section_begin|>",), gap=""),
    "kimi_k3": Tags(("<|open|>think<|sep|>",), ("<|close|>think<|sep|>",), dropped=_K3, gap=""),
    "seed_oss": Tags(("<seed:think>",), ("</seed:think>",), broken_by=("<seed:tool_call>",), gap="\n"),
    "step3": _ALWAYS,
    "step3p5": _STEP,
    "step5": _STEP,
    "granite": Tags(
        ("Here is my thought process:", "Here's my thought process:"),
        ("Here is my response:", "Here's my response:"),
        gap=" ",
    ),
    "olmo3": _THINK,
    "hunyuan_a13b": Tags(wrapper=("<answer>", "</answer>"), gap="\n"),
    "ernie45": Tags(wrapper=("<response>", "</response>")),
    "mimo": _QWEN,
    "ling3": _QWEN,
    "holo2": _THINK,
    "minicpmv": _QWEN,
    "poolside_v1": _QWEN,
    "k2_horizon": Tags(("<ifm|think>",), ("</ifm|think>",)),
    "granite_thinking_parser": _QWEN,
    "hy_v3": Tags(has_suffix=True),
    "cohere_command": Tags(
        ("<|START_THINKING|>",), ("<|END_THINKING|>",), dropped=_COHERE, blanks="\n ", has_citations=True, gap=""
    ),
    "inkling": Tags(frames=INKLING, gap=""),
    "muse": Tags(frames=MUSE, gap=""),
    "plamo3": Tags(
        ("<|plamo:begin_think:plamo|>",),
        ("<|plamo:end_think:plamo|>",),
        opens=True,
        broken_by=("<|plamo:begin_tool_requests:plamo|>",),
        gap="",
    ),
}

ALIASES = {
    "hy_v4": "hy_v3",
    "cohere_command3": "cohere_command",
    "cohere_command4": "cohere_command",
    "gpt_oss": "openai_gptoss",
    "gptoss": "openai_gptoss",
    "openai": "openai_gptoss",
    "harmony": "openai_gptoss",
    "muse_glimmer": "muse",
    "musespark1x": "muse",
}

# Names of vLLM's whose form is not known here, or is not one of marks in text.
WITHOUT_FORM = frozenset({"hf", "beam"})

# Texts that a template must all have -> the format. The first line that fits counts.
_BY_TEMPLATE: tuple[tuple[tuple[str, ...], str], ...] = (
    (("<|channel|>", "analysis"), "openai_gptoss"),
    (("<|channel>",), "gemma4"),
    (("<|content_thinking|>",), "inkling"),
    (("<|start|>", "<|message|>", "<atem:"), "muse"),
    (("<seed:think>",), "seed_oss"),
    (("[THINK]",), "mistral"),
    (("<mm:think>",), "minimax_m3"),
    (("<ifm|think>",), "k2_horizon"),
    (("<|START_THINKING|>",), "cohere_command"),
    (("<|START_RESPONSE|>",), "cohere_command"),
    (("<|plamo:", "begin_think"), "plamo3"),
    (("<|open|>", "<|close|>", "<|sep|>", "think"), "kimi_k3"),
    (("Here is my thought process",), "granite"),
    (("think>", "<minimax:tool_call>"), "minimax_m2"),
    (("think>", "<|tool_calls_section_begin|>"), "kimi_k2"),
    (("</think", "<tool_sep", "<arg_key"), "hy_v3"),
    (("think>", "<arg_key>"), "glm45"),
    (("think>", "<|hy_Assistant|>"), "hunyuan_a13b"),
    (("think>", "<answer>"), "hunyuan_a13b"),
    (("think>", "<response>"), "ernie45"),
    (("think>", "<|begin_of_sentence|>"), "ernie45"),
    (("think>", "｜DSML｜ calls"), "deepseek_v41"),
    (("think>", "｜DSML｜"), "deepseek_v4"),
    (("think>", "<｜Assistant｜>", "thinking"), "deepseek_v3"),
    (("think>", "<｜Assistant｜>"), "deepseek_r1"),
    (("<think>",), "qwen3"),
    (("</think>",), "qwen3"),
)

# Parts of config.json's model_type -> the format, for templates that say nothing.
_BY_MODEL_TYPE: tuple[tuple[str, str], ...] = (
    ("gpt_oss", "openai_gptoss"),
    ("seed_oss", "seed_oss"),
    ("minimax", "minimax_m2"),
    ("step3p5", "step3p5"),
    ("kimi_k2", "kimi_k2"),
)

# Parts of a model's name, in small letters -> the format. The first that fits counts.
_BY_NAME: tuple[tuple[str, str], ...] = (
    ("deepseek-r1", "deepseek_r1"),
    ("qwq", "deepseek_r1"),
    ("gpt-oss", "openai_gptoss"),
    ("magistral", "mistral"),
    ("seed-oss", "seed_oss"),
    ("minimax-m3", "minimax_m3"),
    ("minimax-m2", "minimax_m2"),
    ("kimi-k2-thinking", "kimi_k2"),
    ("step-3.5", "step3p5"),
    ("olmo-3", "olmo3"),
    ("hunyuan-a13b", "hunyuan_a13b"),
    ("nemotron-3", "nemotron_v3"),
    ("mimo-", "mimo"),
    ("qwen3", "qwen3"),
)


def choose_name(template: str, model_type: str | None, model_name: str, override: str | None) -> tuple[str | None, str]:
    """The name of the format, None for no reasoning, and why. Raises ValueError for an unknown override."""
    if override is not None:
        wanted = override.strip().lower()
        if wanted in OFF:
            return None, "REASONING_PARSER turns it off"
        if wanted not in FORMATS and wanted not in ALIASES:
            names = ", ".join([*FORMATS, *ALIASES, "none"])
            known = wanted in WITHOUT_FORM
            what = "the form of this reasoning is not supported" if known else "there is no such format"
            raise ValueError(f"REASONING_PARSER={override[:64]}: {what}; there are {names}")
        return ALIASES.get(wanted, wanted), "REASONING_PARSER says so"
    lower = model_name.lower()
    for texts, name in _BY_TEMPLATE:
        if all(text in template for text in texts):
            return name, f"the chat template has {' and '.join(repr(text) for text in texts)}"
    for part, name in _BY_MODEL_TYPE:
        if model_type and part in model_type.lower():
            return name, f"the model's type is {model_type}"
    for part, name in _BY_NAME:
        if part in lower:
            return name, f"the model's name has {part!r}"
    return None, "neither the chat template nor the model's name points to one"
