"""The formats of reasoning, as data. A row says what a family of models writes around its reasoning; the parser of its
outputs, and what the engine must know for a grammar or a budget, follow from it. The names are those of vLLM's
`--reasoning-parser`.

To add a format, start from an output of the model, such as

    <reason>
    Two and two.
    </reason>

    Four.

1. Write a row of `FORMATS`. A field that is not given is as with `<think>` and `</think>`. The output above is

    Tags(starts=("<reason>",), ends=("</reason>",))

   `opens` belongs to a model whose template ends inside reasoning, or that reasons although its template says nothing.
   `gap` is what the model writes between the end of the reasoning and its answer, here a blank line.
   `broken_by` are the marks of its tool calls, where a call may end the reasoning.
2. Add what tells the family to `choose.py`: texts of its chat template, else its `model_type`, else its name.
3. Add outputs to `VECTORS` in `tests/text/test_reasoning.py`. The tests read each output in every cut.
"""

from __future__ import annotations

from dataclasses import dataclass

from ember.front.text.reasoning.messages import INKLING, MUSE, Frames


@dataclass(frozen=True, slots=True, kw_only=True)
class Tags:
    """How one family writes its reasoning. Every mark may be special tokens, text, or both."""

    starts: tuple[str, ...] = ("<think>",)  # spellings
    ends: tuple[str, ...] = ("</think>",)
    opens: bool = False  # the output begins inside reasoning where the prompt says nothing to the contrary
    broken_by: tuple[str, ...] = ()  # marks of tool calls that end the reasoning as well
    wrapper: tuple[str, str] | None = None  # what stands around the answer
    dropped: tuple[str, ...] = ()  # marks that are shown nowhere: those around an answer, and of messages
    label: str = ""  # the start of the reasoning's text that names it and may be missing
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
    "gemma4": Tags(
        starts=("<|channel>",), ends=("<channel|>",), broken_by=("<|tool_call>",), label="thought\n", gap=""
    ),
    "glm45": Tags(broken_by=("<tool_call>",), gap="\n"),
    "glm47": Tags(broken_by=("<tool_call>",), gap=""),
    "mistral": Tags(starts=("[THINK]",), ends=("[/THINK]",), broken_by=("[TOOL_CALLS]",), gap=""),
    "nemotron_v3": _QWEN,
    "minimax_m2": Tags(opens=True, broken_by=("<minimax:tool_call>",)),
    "minimax_m2_append_think": Tags(opens=True, in_content=True),
    "minimax_m3": Tags(starts=("<mm:think>",), ends=("</mm:think>",)),
    "kimi_k2": Tags(broken_by=("<|tool_calls_section_begin|>",), gap=""),
    "kimi_k3": Tags(starts=("<|open|>think<|sep|>",), ends=("<|close|>think<|sep|>",), dropped=_K3, gap=""),
    "seed_oss": Tags(starts=("<seed:think>",), ends=("</seed:think>",), broken_by=("<seed:tool_call>",), gap="\n"),
    "step3": _ALWAYS,
    "step3p5": _STEP,
    "step5": _STEP,
    "granite": Tags(
        starts=("Here is my thought process:", "Here's my thought process:"),
        ends=("Here is my response:", "Here's my response:"),
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
    "k2_horizon": Tags(starts=("<ifm|think>",), ends=("</ifm|think>",)),
    "granite_thinking_parser": _QWEN,
    "hy_v3": Tags(has_suffix=True),
    "cohere_command": Tags(
        starts=("<|START_THINKING|>",),
        ends=("<|END_THINKING|>",),
        dropped=_COHERE,
        blanks="\n ",
        has_citations=True,
        gap="",
    ),
    "inkling": Tags(frames=INKLING, gap=""),
    "muse": Tags(frames=MUSE, gap=""),
    "plamo3": Tags(
        starts=("<|plamo:begin_think:plamo|>",),
        ends=("<|plamo:end_think:plamo|>",),
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
