"""The worker's listing on the RunPod Hub, `.runpod/hub.json`, made from Settings: `ember settings --hub`, `make hub`.

Every variable in the deploy form is read by the code, with the code's default. The format is that of RunPod's
publishing guide. It has no groups, so settings are sorted by group, and all but the most common ones are advanced.
"""

from __future__ import annotations

import json
from typing import Any

from ember.settings import Settings, variable_names

# The common settings come first. The form hides the groups after them as advanced.
BASIC = ("model_name", "hf_token", "max_model_len", "gpu_memory_utilization", "max_concurrency", "served_model_name")
GROUPS = {
    "Model": (
        "model_",
        "trust_remote",
        "tokenizer_",
        "dtype",
        "base_path",
        "download_dir",
        "load_format",
        "hf_overrides",
        "runner",
        "convert",
        "task",
        "pooler_config",
    ),
    "Chat": ("custom_chat", "chat_template_", "default_chat", "trust_request", "tool_", "exclude_tools", "reasoning_"),
    "Memory and speed": (
        *("kv_cache_", "num_gpu_", "block_size", "max_num_", "enable_prefix", "state_checkpoints", "warmup"),
        "enforce_eager",
    ),
    "API": ("generation_", "override_", "response_role", "max_", "enable_", "return_", "seed", "scheduling_"),
    "Queue": ("queue_", "drain_", "stream_", "default_batch", "min_batch", "batch_size", "native_", "raw_"),
}
_OTHER = "Operation"
# These have no use for a worker on a queue, or should not be changed by a deployer of the image.
LEFT_OUT = {
    "host": "only `ember serve` listens",
    "port": "only `ember serve` listens",
    "api_key": "the platform checks its own keys; only `ember serve` reads it",
    "api_key_file": "only `ember serve` reads it",
    "admin_api_key": "only `ember serve` reads it",
    "server_dev_mode": "its routes are no queue jobs",
    "enable_sleep_mode": "its routes are no queue jobs",
    "allowed_origins": "only `ember serve` reads it",
    "page": "only `ember serve` and `ember platform` have it",
    "batch_dir": "files are uploaded to `ember serve`; only a server that starts continues batches",
    "max_request_bytes": "only `ember serve` reads it",
    "root_path": "only `ember serve` reads it",
    "port_health": "only `ember serve` listens",
    "health_check_path": "only `ember serve` listens",
    "platform_store": "only `ember platform` keeps jobs",
    "device": "the image decides",
    "num_threads": "of the CPU build",
    "cpu_weights": "of the CPU build",
    "cpu_activations": "of the CPU build",
    "lean_torch": "for those who look for a fault",
    "boot_report": "a file that nobody could fetch; `/boot` answers the same",
}
_SAFE_NUMBER = 2**53  # the largest bound that the form is given: larger ones only bound integer types

# Models that the engine supports, 0.6B to 32B, ordered by size. Each has the memory in GB of a GPU that holds its
# weights in 16 bits and a cache of about ten thousand tokens.
PRESETS = (
    ("Qwen/Qwen3-0.6B", 16),
    ("meta-llama/Llama-3.2-1B-Instruct", 16),
    ("Qwen/Qwen3-1.7B", 16),
    ("meta-llama/Llama-3.2-3B-Instruct", 16),
    ("Qwen/Qwen3-4B-Instruct-2507", 16),
    ("mistralai/Mistral-7B-Instruct-v0.3", 24),
    ("Qwen/Qwen2.5-7B-Instruct", 24),
    ("Qwen/Qwen3-8B", 24),
    ("meta-llama/Llama-3.1-8B-Instruct", 24),
    ("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", 24),
    ("Qwen/Qwen3-14B", 48),
    ("Qwen/Qwen2.5-Coder-32B-Instruct", 80),
    ("Qwen/Qwen3-32B", 80),
)


def hub_listing() -> dict[str, Any]:
    """The content of hub.json."""
    return {
        "title": "Ember",
        "description": "Large language models behind an OpenAI-compatible API, with cold starts in seconds.",
        "type": "serverless",
        "category": "language",
        "config": {
            "runsOn": "GPU",
            "containerDiskInGb": 100,
            "gpuCount": 1,
            "gpuIds": "AMPERE_48,ADA_48_PRO,AMPERE_80,ADA_80_PRO",
            "allowedCudaVersions": ["12.8", "12.9", "13.0"],
            "presets": [
                {"name": f"{name} ({memory} GB GPU)", "defaults": {"MODEL_NAME": name}} for name, memory in PRESETS
            ],
            "env": [_entry(field) for field in _in_order()],
        },
    }


def hub_json() -> str:
    return json.dumps(hub_listing(), indent=2, ensure_ascii=False) + "\n"


def group_of(field: str) -> str:
    """The group in which a setting is listed. A setting that no group names is in the last one."""
    return next((group for group, starts in GROUPS.items() if field.startswith(starts)), _OTHER)


def _in_order() -> list[str]:
    order = [*GROUPS, _OTHER]
    rest = [field for field in Settings.model_fields if field not in BASIC and field not in LEFT_OUT]
    return [*BASIC, *sorted(rest, key=lambda field: order.index(group_of(field)))]


def _entry(field: str) -> dict[str, Any]:
    """One variable in the format of the deploy form."""
    schema = Settings.model_json_schema(by_alias=False)["properties"][field]
    value = next((branch for branch in schema.get("anyOf", []) if branch["type"] != "null"), schema)
    default = schema.get("default")
    asked: dict[str, Any] = {"name": _title(field), "type": "string", "description": _description(field)}
    if field == "model_name":
        asked |= {"type": "huggingface", "required": True}
    elif value["type"] == "boolean":
        asked |= {"type": "boolean", "trueValue": "true", "falseValue": "false"}
    elif "enum" in value:
        asked["options"] = [{"label": str(choice), "value": str(choice)} for choice in value["enum"]]
        default = None if default is None else str(default)
    elif value["type"] in ("integer", "number"):
        asked["type"] = "number"
        for bound, keys in (("min", ("minimum", "exclusiveMinimum")), ("max", ("maximum", "exclusiveMaximum"))):
            limit = next((value[key] for key in keys if key in value), None)
            if limit is not None and abs(limit) < _SAFE_NUMBER:
                asked[bound] = limit
    if default is not None:
        asked["default"] = default
    if field not in BASIC:
        asked["advanced"] = True
    return {"key": variable_names(field)[0], "input": asked}


def _title(field: str) -> str:
    name = " ".join(_WORDS.get(word, word) for word in field.split("_"))
    name = name[0].upper() + name[1:]
    return name if field in BASIC else f"{group_of(field)}: {name}"


_WORDS = {"hf": "Hugging Face", "kv": "KV", "gpu": "GPU", "openai": "OpenAI", "len": "length"}


def _description(field: str) -> str:
    return (Settings.model_fields[field].description or "").replace("`", "")
