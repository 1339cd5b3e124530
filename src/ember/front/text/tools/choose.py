"""Choice of the format of a model's tool calls: from its chat template, else its type, else its name."""

from __future__ import annotations

from ember.front.text.tools.formats import ALIASES, FORMATS, WITHOUT_FORM

OFF = frozenset({"none", "off"})  # overrides that turn tool calls off

# Strings that a template must all contain -> the format. The first match is used.
_BY_TEMPLATE: tuple[tuple[tuple[str, ...], str], ...] = (
    (("<|channel|>", "functions."), "openai"),
    (("<|channel|>", "<|constrain|>"), "openai"),
    (("｜DSML｜tool_calls",), "deepseek_v4"),
    (("｜DSML｜ calls",), "deepseek_v41"),
    (("｜DSML｜",), "deepseek_v32"),
    (("<｜tool▁sep｜>", "```json"), "deepseek_v3"),
    (("<｜tool▁sep｜>",), "deepseek_v31"),
    (("<|tool_calls_section_begin|>",), "kimi_k2"),
    (("<|tool_call>", "call:"), "gemma4"),
    (("<start_function_call>",), "functiongemma"),
    (("]<]minimax[>[",), "minimax_m3"),
    (("<minimax:tool_call>",), "minimax_m2"),
    (("<dots_function_call>",), "dots"),
    (("<seed:tool_call>",), "seed_oss"),
    (("<|content_invoke_tool_json|>",), "inkling"),
    (("<atem:function_calls>",), "muse"),
    (("<ifm|tool_call",), "k2_horizon"),
    (("<|open|>", "<|close|>", "<|sep|>"), "kimi_k3"),
    (("<|plamo:", "tool_request"), "plamo3"),
    (("<longcat_tool_call>",), "longcat"),
    (("[TOOL_CALLS]",), "mistral"),
    (("<|action_start|>",), "internlm"),
    (("<|tool_call_start|>",), "lfm2"),
    (("<function_calls>",), "olmo3"),
    (("<steptml:invoke",), "step3"),
    (("<tool_sep", "<arg_key"), "hy_v3"),
    (("<function name=", "<param name="), "minicpm5"),
    (("<|START_ACTION|>",), "cohere_command3"),
    (("<|tools_prefix|>",), "apertus"),
    (("<|function_call|>",), "gigachat3"),
    (("function call<|role_sep|>",), "gigachat3"),
    (("<tool_calls>",), "hunyuan_a13b"),
    (("functools",), "phi4_mini_json"),
    (("<function_call>",), "granite-20b-fc"),
    (("<|python_start|>", "[func_name"), "llama4_pythonic"),
    (("<|python_tag|>",), "llama3_json"),
)
_ARGUMENT_PAIRS = "<arg_key>"
_FUNCTION_TAGS = "<function="

# Parts of config.json's model_type -> the format, for templates that do not tell.
_BY_MODEL_TYPE: tuple[tuple[str, str], ...] = (
    ("gpt_oss", "openai"),
    ("gemma4", "gemma4"),
    ("seed_oss", "seed_oss"),
    ("minimax_m3", "minimax_m3"),
    ("minimax", "minimax_m2"),
    ("kimi_k2", "kimi_k2"),
    ("deepseek_v4", "deepseek_v4"),
    ("apertus", "apertus"),
    ("hy_v3", "hy_v3"),
    ("deepseek_v32", "deepseek_v32"),
    ("glm4_moe", "glm45"),
    ("granitemoehybrid", "granite4"),
    ("granite", "granite"),
    ("lfm2", "lfm2"),
    ("olmo3", "olmo3"),
    ("ernie4_5", "ernie45"),
    ("hunyuan", "hunyuan_a13b"),
    ("jamba", "jamba"),
    ("internlm", "internlm"),
    ("llama4", "llama4_pythonic"),
    ("qwen3_next", "hermes"),
    ("qwen3_5", "qwen3_coder"),
)

_NEWER = frozenset({("glm45", "glm47"), ("hermes", "qwen3_coder")})

# Parts of a model's name, in lower case -> the format. The first match is used.
_BY_NAME: tuple[tuple[str, str], ...] = (
    ("xlam", "xlam"),
    ("hermes", "hermes"),
    ("functiongemma", "functiongemma"),
    ("mimo-", "mimo"),
    ("qwen3-coder", "qwen3_coder"),
    ("qwen3.5", "qwen3_coder"),
    ("qwen3.6", "qwen3_coder"),
    ("qwq", "hermes"),
    ("qwen2.5", "hermes"),
    ("qwen3", "hermes"),
    ("internlm", "internlm"),
    ("llama-4", "llama4_pythonic"),
    ("llama-3.1", "llama3_json"),
    ("llama-3.2", "llama3_json"),
    ("llama-3.3", "llama3_json"),
    ("deepseek-r1-0528", "deepseek_v3"),
    ("deepseek-v4", "deepseek_v4"),
    ("deepseek-v3.2", "deepseek_v32"),
    ("deepseek-v3.1", "deepseek_v31"),
    ("deepseek-v3", "deepseek_v3"),
    ("deepseek-r1", "deepseek_v3"),
    ("glm-5", "glm47"),
    ("glm-4.7", "glm47"),
    ("glm-4.6", "glm45"),
    ("glm-4.5", "glm45"),
    ("granite-4", "granite4"),
    ("granite-20b-function", "granite-20b-fc"),
    ("granite-3", "granite"),
    ("kimi-k2", "kimi_k2"),
    ("minimax-m3", "minimax_m3"),
    ("minimax-m2", "minimax_m2"),
    ("kimi-k3", "kimi_k3"),
    ("plamo-3", "plamo3"),
    ("k2-horizon", "k2_horizon"),
    ("inkling", "inkling"),
    ("muse-glimmer", "muse"),
    ("step-3.5", "step3p5"),
    ("seed-oss", "seed_oss"),
    ("gpt-oss", "openai"),
    ("gemma-4", "gemma4"),
    ("mistral", "mistral"),
    ("mixtral", "mistral"),
    ("devstral", "mistral"),
    ("magistral", "mistral"),
    ("phi-4-mini", "phi4_mini_json"),
    ("jamba", "jamba"),
    ("hunyuan-a13b", "hunyuan_a13b"),
    ("ernie-4.5", "ernie45"),
    ("olmo-3", "olmo3"),
    ("lfm2", "lfm2"),
    ("toolace", "pythonic"),
    ("apertus", "apertus"),
    ("gigachat3", "gigachat3"),
    ("minicpm5", "minicpm5"),
    ("command-r7b", "cohere_command3"),
    ("command-a", "cohere_command3"),
)


def choose_name(template: str, model_type: str | None, model_name: str, override: str | None) -> tuple[str | None, str]:
    """The name of the format (None: no tool calls), and the reason. Raises ValueError for an unknown override."""
    if override is not None:
        wanted = override.strip().lower()
        if wanted in OFF:
            return None, "TOOL_CALL_PARSER turns it off"
        if wanted not in FORMATS and wanted not in ALIASES:
            names = ", ".join([*FORMATS, *ALIASES, "none"])
            what = "the form of these calls is not supported" if wanted in WITHOUT_FORM else "there is no such format"
            raise ValueError(f"TOOL_CALL_PARSER={override[:64]}: {what}; there are {names}")
        return ALIASES.get(wanted, wanted), "TOOL_CALL_PARSER says so"
    kind, name = (model_type or "").lower(), model_name.lower()
    found = _by_template(template, kind, name)
    if found is not None:
        return found
    for part, chosen in _BY_MODEL_TYPE:
        if part in kind:
            # One type has several formats if a newer model changed only its template.
            newer = next((new for text, new in _BY_NAME if text in name and (chosen, new) in _NEWER), None)
            if newer is not None:
                return newer, f"the model's type is {model_type}, and its name that of a newer one"
            return chosen, f"the model's type is {model_type}"
    for part, chosen in _BY_NAME:
        if part in name:
            return chosen, f"the model's name has {part!r}"
    return None, "neither the chat template nor the model's type or name points to one"


def _by_template(template: str, kind: str, name: str) -> tuple[str, str] | None:
    for texts, chosen in _BY_TEMPLATE:
        if all(text in template for text in texts):
            if chosen == "hunyuan_a13b" and ("jamba" in kind or "jamba" in name):
                chosen = "jamba"
            return chosen, f"the chat template has {' and '.join(repr(text) for text in texts)}"
    if _ARGUMENT_PAIRS in template:
        # The newer format has no whitespace between the tags.
        is_tight = "</arg_key><arg_value>" in template or "'</arg_key>' ~ '<arg_value>'" in template
        return ("glm47" if is_tight else "glm45"), f"the chat template has {_ARGUMENT_PAIRS!r}"
    if _FUNCTION_TAGS in template:
        is_mimo = "mimo" in kind or "mimo" in name
        is_step = "step" in kind
        chosen = "mimo" if is_mimo else "step3p5" if is_step else "qwen3_coder"
        return chosen, f"the chat template has {_FUNCTION_TAGS!r}"
    if "<|tool_call|>" in template:
        is_phi = "phi" in kind or "phi" in name
        return ("phi4_mini_json" if is_phi else "granite"), "the chat template has '<|tool_call|>'"
    if "<tool_call>" in template:
        is_ernie, is_granite = "ernie" in kind, "granite" in kind
        chosen = "ernie45" if is_ernie else "granite4" if is_granite else "hermes"
        return chosen, "the chat template has '<tool_call>'"
    if '{"name": function name, "parameters":' in template:
        return "llama3_json", "the chat template asks for a name and parameters as JSON"
    if "[func_name1(" in template:
        return "pythonic", "the chat template asks for calls in Python's form"
    return None
