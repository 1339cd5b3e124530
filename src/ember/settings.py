"""Every setting, once: environment variable, type, default, help, aliases. Nothing else reads the environment.

Precedence: command line > environment > YAML file (`VLLM_CONFIG_FILE`) > defaults. What is empty or blank is unset.
A value that cannot be used raises `SettingsError`, one line that names the variable, the value and what is allowed.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasChoices, BeforeValidator, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from ember import settings_forms as forms
from ember.settings_known import KNOWN_UNUSED

log = logging.getLogger(__name__)

_WHOLE = re.compile(r"[+-]?[0-9][0-9_]*")
_LEN_SUFFIX = {"k": 1000, "K": 1024, "m": 1_000_000, "M": 1024 * 1024, "g": 1_000_000_000, "G": 1024**3}


class SettingsError(ValueError):
    """A setting that cannot be used; the message is one line for the person who set it."""


def _clean(value: Any) -> Any:
    """Strip blanks; 'none' and 'null' mean unset."""
    if isinstance(value, str):
        value = value.strip()
        if value.lower() in ("none", "null", ""):
            return None
    return value


def _human_int(value: Any) -> Any:
    """`32k` is 32000, `32K` is 32768, as in vLLM; `auto` and -1 mean: decide for me."""
    value = _clean(value)
    if isinstance(value, str):
        if value.lower() == "auto" or value == "-1":
            return None
        if value.isdigit():
            return int(value)
        if value[-1:] in _LEN_SUFFIX:
            try:
                return int(float(value[:-1]) * _LEN_SUFFIX[value[-1]])
            except (ValueError, OverflowError):
                return value
    return None if value == -1 else value


def _count(value: Any) -> Any:
    """Raises ValueError for text that is no number in any of these forms."""
    number = _human_int(value)
    if isinstance(number, str) and not _WHOLE.fullmatch(number):
        raise ValueError("it must be an integer, also as 32k (32000), 32K (32768) or auto; bytes as 4G")
    return number


def _bytes(value: Any) -> Any:
    number = _human_int(value)
    if number is None or (isinstance(number, str) and not _WHOLE.fullmatch(number)):
        raise ValueError("it must be a number of bytes, such as 32M (32 MiB) or 33554432")
    return number


def _lower(value: Any) -> Any:
    value = _clean(value)
    return value.lower() if isinstance(value, str) else value


def _comma_list(value: Any) -> Any:
    value = _clean(value)
    if value is None:
        return []
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


_DTYPES = {"bf16": "bfloat16", "half": "float16", "fp16": "float16", "float": "float32", "fp32": "float32"}


def _auto(value: Any) -> Any:
    value = _lower(value)
    return "auto" if value is None else value


def _dtype(value: Any) -> Any:
    value = _auto(value)
    return _DTYPES.get(value, value) if isinstance(value, str) else value


def _format_name(value: Any) -> Any:
    """`none` is a value of its own here: it turns the detection off."""
    value = value.strip() if isinstance(value, str) else value
    return None if value in ("", "auto") else value


OptionalStr = Annotated[str | None, BeforeValidator(_clean)]
FormatName = Annotated[str | None, BeforeValidator(_format_name)]
_MAX_INT = 2**63 - 1  # what a message to the engine can carry
_DAY_SECONDS = 86_400.0
PositiveInt = Annotated[Annotated[int, Field(ge=1, le=_MAX_INT)] | None, BeforeValidator(_count)]
NonNegativeInt = Annotated[Annotated[int, Field(ge=0, le=_MAX_INT)] | None, BeforeValidator(_count)]
CommaList = Annotated[list[str], NoDecode, BeforeValidator(_comma_list)]


def _names(*names: str) -> Any:
    return AliasChoices(*names)


_KEYS = ("API_KEY", "VLLM_API_KEY")  # set to blanks they are a mistake that would leave a server open


def _is_blank(name: str, value: Any) -> bool:
    """Whether a setting is given as nothing, as forms send what nobody filled in: then it is unset."""
    return isinstance(value, str) and not value.strip() and name.upper() not in _KEYS


class Settings(BaseSettings):
    """The worker's settings. The first alias of a field is its name in the documentation."""

    model_config = SettingsConfigDict(env_ignore_empty=True, extra="ignore", populate_by_name=True, allow_inf_nan=False)

    # --- the model
    model_name: OptionalStr = Field(
        None,
        validation_alias=_names("MODEL_NAME", "MODEL"),
        description="Hugging Face id or directory of the model. `demo` is the small model in the package.",
    )
    model_revision: OptionalStr = Field(
        None, validation_alias=_names("MODEL_REVISION", "REVISION"), description="Branch, tag or commit of the model."
    )
    tokenizer_name: OptionalStr = Field(
        None,
        validation_alias=_names("TOKENIZER_NAME", "TOKENIZER"),
        description="Id or directory of the tokenizer, where it is not the model's own.",
    )
    tokenizer_revision: OptionalStr = Field(
        None, validation_alias=_names("TOKENIZER_REVISION"), description="Branch, tag or commit of the tokenizer."
    )
    base_path: str = Field(
        "/runpod-volume",
        validation_alias=_names("BASE_PATH"),
        description="Volume that holds `huggingface-cache/hub`, searched before the Hugging Face cache.",
    )
    download_dir: OptionalStr = Field(
        None, validation_alias=_names("DOWNLOAD_DIR"), description="Cache directory for downloads instead of HF_HOME's."
    )
    hf_token: SecretStr | None = Field(
        None,
        validation_alias=_names("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"),
        description="Token for gated or private models.",
    )
    served_model_name: CommaList = Field(
        default_factory=list,
        validation_alias=_names("OPENAI_SERVED_MODEL_NAME_OVERRIDE", "SERVED_MODEL_NAME"),
        description="Names under which the model is served, separated by commas; the first is used in answers.",
    )
    dtype: Annotated[Literal["auto", "bfloat16", "float16", "float32"], BeforeValidator(_dtype)] = Field(
        "auto",
        validation_alias=_names("DTYPE"),
        description="Weights and activations. auto = as in the checkpoint, or what the device is fast at.",
    )
    cpu_weights: Annotated[Literal["auto", "int8", "int4"], BeforeValidator(_auto)] = Field(
        "auto",
        validation_alias=_names("CPU_WEIGHTS"),
        description="Weights on a CPU: auto = in DTYPE; int8; int4 (embedding and head int8). Faster for few users.",
    )
    max_model_len: PositiveInt = Field(
        None,
        validation_alias=_names("MAX_MODEL_LEN"),
        description="Longest prompt plus output, in tokens (`32k`, `auto`). auto = the model's, or what fits.",
    )

    # --- the engine
    device: Annotated[Literal["auto", "cpu", "cuda"], BeforeValidator(_lower)] = Field(
        "auto", validation_alias=_names("DEVICE"), description="auto = the GPU if there is one."
    )
    gpu_memory_utilization: float = Field(
        0.92,
        gt=0,
        le=1,
        validation_alias=_names("GPU_MEMORY_UTILIZATION"),
        description="Share of the GPU's memory for weights, activations and KV cache together.",
    )
    kv_cache_memory_bytes: PositiveInt = Field(
        None,
        validation_alias=_names("KV_CACHE_MEMORY_BYTES"),
        description="Size of the KV cache (`4G`), instead of what GPU_MEMORY_UTILIZATION leaves.",
    )
    num_gpu_blocks_override: PositiveInt = Field(
        None, validation_alias=_names("NUM_GPU_BLOCKS_OVERRIDE"), description="Number of KV cache pages, exactly."
    )
    block_size: Annotated[Literal[8, 16, 32, 64, 128], BeforeValidator(_human_int)] = Field(
        16, validation_alias=_names("BLOCK_SIZE"), description="Tokens in one page of the KV cache."
    )
    max_num_seqs: PositiveInt = Field(
        None, validation_alias=_names("MAX_NUM_SEQS"), description="Sequences in one step. Default 256, on CPU 64."
    )
    max_num_batched_tokens: NonNegativeInt = Field(
        None,
        validation_alias=_names("MAX_NUM_BATCHED_TOKENS"),
        description="Token budget of one step. 0 or unset: 8192, on CPU 2048.",
    )
    enable_prefix_caching: bool = Field(
        True,
        validation_alias=_names("ENABLE_PREFIX_CACHING"),
        description="Share and keep the KV pages of common prefixes.",
    )
    scheduling_policy: Annotated[Literal["fcfs", "priority"], BeforeValidator(_lower)] = Field(
        "fcfs", validation_alias=_names("SCHEDULING_POLICY"), description="Order of admission."
    )
    seed: Annotated[Annotated[int, Field(ge=-(2**63), le=_MAX_INT)] | None, BeforeValidator(_clean)] = Field(
        None,
        validation_alias=_names("SEED"),
        description="Seed of requests that bring none of their own. Unset: different at every boot.",
    )
    num_threads: PositiveInt = Field(
        None,
        validation_alias=_names("NUM_THREADS", "OMP_NUM_THREADS"),
        description="CPU threads. Default: the physical cores that the process may use.",
    )
    engine_restarts: int = Field(
        3,
        ge=0,
        validation_alias=_names("ENGINE_RESTARTS"),
        description="How often a crashed engine is started again before the worker exits.",
    )
    step_timeout: float = Field(
        300.0,
        ge=0,
        le=_DAY_SECONDS,
        validation_alias=_names("STEP_TIMEOUT"),
        description="Seconds until a step that does not return, or an engine that is frozen, is a crash; 0 = never.",
    )

    # --- the API
    custom_chat_template: OptionalStr = Field(
        None,
        validation_alias=_names("CUSTOM_CHAT_TEMPLATE", "CHAT_TEMPLATE"),
        description="Chat template, as a file's path or as Jinja text, instead of the model's.",
    )
    chat_template_content_format: Annotated[Literal["auto", "string", "openai"], BeforeValidator(_lower)] = Field(
        "auto",
        validation_alias=_names("CHAT_TEMPLATE_CONTENT_FORMAT"),
        description="How the template takes a message's content: string, openai = a list of parts, auto = read off it.",
    )
    trust_request_chat_template: bool = Field(
        False,
        validation_alias=_names("TRUST_REQUEST_CHAT_TEMPLATE"),
        description="Accept chat templates that requests bring. They run sandboxed, in a process of their own.",
    )
    chat_template_render_timeout: float = Field(
        10.0,
        gt=0,
        le=600,
        validation_alias=_names("CHAT_TEMPLATE_RENDER_TIMEOUT", "VLLM_CHAT_TEMPLATE_RENDER_TIMEOUT"),
        description="Seconds that a template of a request may take.",
    )
    default_chat_template_kwargs: Annotated[
        dict[str, Any], NoDecode, BeforeValidator(forms.json_object('{"enable_thinking": false}'))
    ] = Field(
        default_factory=dict,
        validation_alias=_names("DEFAULT_CHAT_TEMPLATE_KWARGS"),
        description='Variables of the chat template as JSON, such as {"enable_thinking": false}; requests win.',
    )
    tool_call_parser: FormatName = Field(
        None,
        validation_alias=_names("TOOL_CALL_PARSER"),
        description="Form of the model's tool calls (hermes, llama3_json, ...), or none. Unset: read off its template.",
    )
    enable_auto_tool_choice: bool = Field(
        True,
        validation_alias=_names("ENABLE_AUTO_TOOL_CHOICE"),
        description='Let the model decide whether it calls a tool; false refuses tool_choice "auto".',
    )
    exclude_tools_when_tool_choice_none: bool = Field(
        False,
        validation_alias=_names("EXCLUDE_TOOLS_WHEN_TOOL_CHOICE_NONE"),
        description='Keep tools out of the prompt with tool_choice "none".',
    )
    reasoning_parser: FormatName = Field(
        None,
        validation_alias=_names("REASONING_PARSER"),
        description="Form of the model's reasoning (qwen3, deepseek_r1, ...), or none. Unset: read off its template.",
    )
    generation_config: str = Field(
        "auto",
        validation_alias=_names("GENERATION_CONFIG"),
        description="Sampling defaults: auto = the model's generation_config.json, vllm = none, or a directory.",
    )
    override_generation_config: Annotated[
        dict[str, Any], NoDecode, BeforeValidator(forms.json_object('{"temperature": 0.6}'))
    ] = Field(
        default_factory=dict,
        validation_alias=_names("OVERRIDE_GENERATION_CONFIG"),
        description='Sampling defaults as JSON, such as {"temperature": 0.6}; stronger than GENERATION_CONFIG.',
    )
    response_role: str = Field(
        "assistant",
        validation_alias=_names("RESPONSE_ROLE", "OPENAI_RESPONSE_ROLE"),
        description="Role in chat answers.",
    )
    max_logprobs: int = Field(
        20, ge=-1, validation_alias=_names("MAX_LOGPROBS"), description="Most logprobs a request may ask; -1 = any."
    )
    max_stop_strings: int = Field(
        4,
        ge=0,
        validation_alias=_names("MAX_STOP_STRINGS", "VLLM_MAX_STOP_STRINGS"),
        description="Most stop strings a request may have.",
    )
    enable_prompt_tokens_details: bool = Field(
        False, validation_alias=_names("ENABLE_PROMPT_TOKENS_DETAILS"), description="Report cached tokens in usage."
    )
    enable_force_include_usage: bool = Field(
        False, validation_alias=_names("ENABLE_FORCE_INCLUDE_USAGE"), description="Usage in every stream."
    )
    stream_interval: int = Field(
        1,
        ge=1,
        validation_alias=_names("STREAM_INTERVAL"),
        description="Tokens of a choice in one chunk of a stream, after its first; a request may ask for another.",
    )
    return_tokens_as_token_ids: bool = Field(
        False,
        validation_alias=_names("RETURN_TOKENS_AS_TOKEN_IDS"),
        description="Logprobs name tokens as `token_id:123`.",
    )
    enable_request_id_headers: bool = Field(
        False, validation_alias=_names("ENABLE_REQUEST_ID_HEADERS"), description="Answer with an X-Request-Id header."
    )
    enable_per_request_metrics: bool = Field(
        False,
        validation_alias=_names("ENABLE_PER_REQUEST_METRICS"),
        description="Answers with one choice have their times in `metrics`; streams, in the chunk with the usage.",
    )
    enable_tokenizer_info_endpoint: bool = Field(
        False,
        validation_alias=_names("ENABLE_TOKENIZER_INFO_ENDPOINT"),
        description="GET /tokenizer_info shows the tokenizer's configuration and the chat template.",
    )

    # --- the faces
    host: str = Field("0.0.0.0", validation_alias=_names("HOST"), description="Address of `ember serve`.")
    port: int = Field(8000, ge=0, le=65535, validation_alias=_names("PORT"), description="Port of `ember serve`.")
    api_key: Annotated[list[SecretStr], NoDecode, BeforeValidator(_comma_list)] = Field(
        default_factory=list,
        validation_alias=_names("API_KEY", "VLLM_API_KEY"),
        description="Keys that `ember serve` accepts as Bearer token, separated by commas.",
    )
    api_key_file: OptionalStr = Field(
        None,
        validation_alias=_names("API_KEY_FILE"),
        description="File with more such keys, one a line; empty lines and those that begin with # are skipped.",
    )
    allowed_origins: Annotated[
        list[Annotated[str, AfterValidator(forms.origin)]],
        NoDecode,
        BeforeValidator(lambda value: _comma_list(forms.origin_list(value))),
    ] = Field(
        default_factory=list,
        validation_alias=_names("ALLOWED_ORIGINS"),
        description="Origins whose pages may call `ember serve` from a browser (CORS); `*` = all. Unset: none.",
    )
    root_path: Annotated[str, BeforeValidator(lambda value: _clean(value) or ""), AfterValidator(forms.root_path)] = (
        Field(
            "",
            validation_alias=_names("ROOT_PATH"),
            description="Path under which a proxy shows `ember serve`, such as /llm: it is no part of a route.",
        )
    )
    max_request_bytes: Annotated[int, Field(ge=1024, le=2**31), BeforeValidator(_bytes)] = Field(
        32 * 2**20,
        validation_alias=_names("MAX_REQUEST_BYTES", "VLLM_HTTP_MAX_REQUEST_BODY_SIZE"),
        description="Largest body of a request to `ember serve` (`32M`).",
    )
    port_health: Annotated[Annotated[int, Field(ge=0, le=65535)] | None, BeforeValidator(_clean)] = Field(
        None,
        validation_alias=_names("PORT_HEALTH"),
        description="Port on which `ember serve` answers health checks too, where it is not PORT.",
    )
    platform_store: Annotated[
        str, BeforeValidator(lambda value: _clean(value) or "memory"), AfterValidator(forms.store)
    ] = Field(
        "memory",
        validation_alias=_names("PLATFORM_STORE", "STORE"),
        description="Where `ember platform` keeps jobs and results: memory, or sqlite:FILE to outlive a restart.",
    )
    health_check_path: Annotated[str, AfterValidator(forms.url_path)] = Field(
        "/ping",
        validation_alias=_names("HEALTH_CHECK_PATH"),
        description="Path of a load balancer's health check: 204 while loading, 200 when ready, 503 when dead.",
    )
    max_concurrency: PositiveInt = Field(
        None,
        validation_alias=_names("MAX_CONCURRENCY"),
        description="Jobs taken from the queue at the same time. Default: MAX_NUM_SEQS.",
    )
    queue_client: Annotated[Literal["runpod", "direct"], BeforeValidator(_lower)] = Field(
        "runpod",
        validation_alias=_names("QUEUE_CLIENT"),
        description="Who speaks to the queue: runpod = the platform's SDK, direct = Ember's own client.",
    )
    drain_timeout: float = Field(
        30.0,
        ge=0,
        le=_DAY_SECONDS,
        validation_alias=_names("DRAIN_TIMEOUT"),
        description="Seconds that jobs and requests in flight have to finish after SIGTERM; the rest end in an error.",
    )
    max_num_queued_reqs: PositiveInt = Field(
        None,
        validation_alias=_names("MAX_NUM_QUEUED_REQS"),
        description="Most requests that wait for their first token: one more is a 503, a job is not taken. Unset: any.",
    )
    max_num_queued_tokens: PositiveInt = Field(
        None,
        validation_alias=_names("MAX_NUM_QUEUED_TOKENS"),
        description="Most prompt tokens of the requests that wait for their first token; beyond them the same.",
    )
    default_batch_size: PositiveInt = Field(
        None,
        validation_alias=_names("DEFAULT_BATCH_SIZE"),
        description="Most chunks that leave in one piece of a streamed job. Unset: all that were made meanwhile.",
    )
    min_batch_size: PositiveInt = Field(
        None,
        validation_alias=_names("MIN_BATCH_SIZE", "DEFAULT_MIN_BATCH_SIZE"),
        description="Fewest chunks in a piece of a streamed job, the last one apart. Unset: 1, nothing waits.",
    )
    batch_size_growth_factor: Annotated[Annotated[float, Field(ge=1, le=1000)] | None, BeforeValidator(_clean)] = Field(
        None,
        validation_alias=_names("BATCH_SIZE_GROWTH_FACTOR"),
        description="The fewest chunks of a piece grow by this factor from piece to piece, up to DEFAULT_BATCH_SIZE.",
    )
    native_output: Annotated[Literal["openai", "tokens"], BeforeValidator(_lower)] = Field(
        "openai",
        validation_alias=_names("NATIVE_OUTPUT"),
        description="Output of jobs with `messages` or `prompt`: openai = as the OpenAI routes, tokens = "
        "`choices[].tokens` with usage `input` and `output`, as older workers had it.",
    )
    raw_openai_output: bool = Field(
        True,
        validation_alias=_names("RAW_OPENAI_OUTPUT"),
        description="Streamed jobs yield SSE text; false = lists of parsed chunks.",
    )
    log_level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_lower)] = Field(
        "info", validation_alias=_names("LOG_LEVEL"), description="Level of the log on stderr."
    )
    log_format: Annotated[Literal["text", "json"], BeforeValidator(_lower)] = Field(
        "text",
        validation_alias=_names("LOG_FORMAT"),
        description="Form of the log: text, or json with a JSON object a line.",
    )
    otlp_traces_endpoint: Annotated[OptionalStr, AfterValidator(forms.http_url)] = Field(
        None,
        validation_alias=_names("OTLP_TRACES_ENDPOINT"),
        description="Where a span for each request is sent, as OTLP over HTTP (`http://collector:4318/v1/traces`); "
        "needs the `otel` extra.",
    )
    warmup: Annotated[Literal["none", "eager", "full"], BeforeValidator(lambda value: _lower(value) or "none")] = Field(
        "none",
        validation_alias=_names("WARMUP"),
        description="Work before the worker is ready, for platforms that snapshot a warmed process: eager = a first "
        "request of its own, full = also packed weights and every CUDA graph. none boots fastest.",
    )
    enforce_eager: bool = Field(
        False,
        validation_alias=_names("ENFORCE_EAGER"),
        description="On a GPU: launch every step kernel by kernel. Otherwise decode steps are recorded as CUDA graphs, "
        "in idle moments after the first answer.",
    )
    lean_torch: bool = Field(
        True,
        validation_alias=_names("EMBER_LEAN_TORCH"),
        description="Import only those parts of torch that the engine needs, and the rest when something asks for it. "
        "docs/boot.md has more.",
    )
    boot_report: OptionalStr = Field(
        None, validation_alias=_names("EMBER_BOOT_REPORT"), description="File for the boot timeline as JSON."
    )

    @field_validator("max_num_batched_tokens")
    @classmethod
    def _zero_is_unset(cls, value: int | None) -> int | None:
        return value or None

    @field_validator("api_key", mode="before")
    @classmethod
    def _holds_a_key(cls, value: Any) -> Any:
        if isinstance(value, str) and not any(part.strip() for part in value.split(",")):
            raise ValueError("it is set but holds no key, which would leave the server open; unset it or give a key")
        return value

    @field_validator("max_logprobs", mode="before")
    @classmethod
    def _strip(cls, value: Any) -> Any:
        return value.strip() if isinstance(value, str) else value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        environment = EnvSettingsSource(settings_cls)
        found = environment.env_vars
        environment.env_vars = {name: value for name, value in found.items() if not _is_blank(name, value)}
        return init_settings, environment

    @property
    def served_names(self) -> list[str]:
        """The names the API knows the model by; the first is the one it answers with."""
        return self.served_model_name or [self.model_name or "demo"]


def variable_names(field: str) -> list[str]:
    """The environment variables of a field; the first is the one it is documented under."""
    alias = Settings.model_fields[field].validation_alias
    assert isinstance(alias, AliasChoices)
    return [str(choice) for choice in alias.choices]


def load_settings(overrides: Mapping[str, Any] | None = None) -> Settings:
    """Read the environment and the YAML file. `overrides` (from the command line) are field names with values.

    Raises SettingsError.
    """
    values = dict(_yaml_values())
    given = {field: value for field, value in (overrides or {}).items() if value is not None}
    values.update({field: value for field, value in given.items() if not _is_blank(field, value)})
    try:
        settings = Settings(**values)
    except ValidationError as error:
        raise SettingsError(_one_line(error)) from None
    if settings.api_key_file is not None:
        settings.api_key += _keys_of(settings.api_key_file)
    return settings


def _keys_of(path: str) -> list[SecretStr]:
    """The keys in a file. Raises SettingsError; its content is never shown."""
    try:
        lines = [line.strip() for line in Path(path).read_text().splitlines()]
    except OSError as error:
        advice = "it must name a readable file with one key a line, or be unset"
        raise SettingsError(f"API_KEY_FILE={path}: {error.strerror or error}; {advice}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"API_KEY_FILE={path} is not UTF-8 text") from None
    keys = [SecretStr(line) for line in lines if line and not line.startswith("#")]
    if not keys:
        raise SettingsError(f"API_KEY_FILE={path} holds no key, which would leave the server open")
    return keys


def warn_unused(environ: Mapping[str, str] = os.environ) -> list[str]:
    """One line for each variable that other workers read and this one does not act on."""
    names = sorted(name for name, value in environ.items() if name in KNOWN_UNUSED and value.strip())
    return [f"{name} is set but has no effect: {KNOWN_UNUSED[name]}" for name in names]


def _yaml_values() -> dict[str, Any]:
    """Values of the YAML file as field names; what the environment also sets is left out, for it is stronger."""
    path = os.environ.get("VLLM_CONFIG_FILE", "").strip() or os.environ.get("EMBER_CONFIG_FILE", "").strip()
    if not path:
        return {}
    import yaml

    try:
        content = yaml.safe_load(Path(path).read_text()) or {}
    except OSError as error:
        advice = "it must name a readable YAML file of settings, or be unset"
        raise SettingsError(f"VLLM_CONFIG_FILE={path}: {error.strerror or error}; {advice}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"VLLM_CONFIG_FILE={path} is not UTF-8 text") from None
    except yaml.YAMLError as error:
        raise SettingsError(f"VLLM_CONFIG_FILE={path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise SettingsError(f"VLLM_CONFIG_FILE={path} must hold a mapping of setting names to values")
    by_name = {name: field for field in Settings.model_fields for name in (*variable_names(field), field.upper())}
    values = {}
    for key, value in content.items():
        name = str(key).replace("-", "_").upper()
        field = by_name.get(name)
        if value is None or _is_blank(name, value):
            continue
        if field is None:
            hint = KNOWN_UNUSED.get(name, "unknown setting")
            log.warning("%s in %s has no effect: %s", key, path, hint)
        elif not any(os.environ.get(alias, "").strip() for alias in variable_names(field)):
            values[field] = value
    return values


def _one_line(error: ValidationError) -> str:
    """`MAX_MODEL_LEN=abc: Input should be a valid integer`, for each wrong value, joined by semicolons."""
    by_name = {name: field for field in Settings.model_fields for name in (*variable_names(field), field)}
    lines = []
    for item in error.errors():
        field = by_name.get(str(item["loc"][0]), str(item["loc"][0]))
        name = variable_names(field)[0] if field in Settings.model_fields else field
        if field in Settings.model_fields:
            name = next((alias for alias in variable_names(field) if os.environ.get(alias)), name)
        secret = field in ("hf_token", "api_key")
        given = "(hidden)" if secret else str(item.get("input"))[:100]
        lines.append(f"{name}={given}: {_reason(item)}")
    return "; ".join(lines)


def _reason(item: Any) -> str:
    message = str(item["msg"]).removeprefix("Value error, ").partition(", unable to parse")[0]
    return message[0].lower() + message[1:]
