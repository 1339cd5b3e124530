"""Choice of the format of a model's reasoning: from its chat template, else its type, else its name."""

from __future__ import annotations

from ember.front.text.reasoning.formats import ALIASES, FORMATS, WITHOUT_FORM

OFF = frozenset({"none", "off"})  # overrides that turn the splitting off

# Strings that a template must all contain -> the format. The first match is used.
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

# Parts of config.json's model_type -> the format, for templates that do not tell.
_BY_MODEL_TYPE: tuple[tuple[str, str], ...] = (
    ("gpt_oss", "openai_gptoss"),
    ("gemma4", "gemma4"),
    ("seed_oss", "seed_oss"),
    ("minimax", "minimax_m2"),
    ("step3p5", "step3p5"),
    ("kimi_k2", "kimi_k2"),
)

# Parts of a model's name, in lower case -> the format. The first match is used.
_BY_NAME: tuple[tuple[str, str], ...] = (
    ("deepseek-r1", "deepseek_r1"),
    ("qwq", "deepseek_r1"),
    ("gpt-oss", "openai_gptoss"),
    ("gemma-4", "gemma4"),
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
    """The name of the format (None: no reasoning), and the reason. Raises ValueError for an unknown override."""
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
