"""Every setting, once: environment variable, type, default, help, aliases. Nothing else reads the environment."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasChoices, BeforeValidator, Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from ember.settings import forms
from ember.settings.values import (
    DAY_SECONDS,
    MAX_INT,
    CommaList,
    FormatName,
    NonNegativeInt,
    OptionalStr,
    PositiveInt,
    byte_count,
    clean,
    comma_list,
    convert_name,
    dtype_name,
    human_int,
    is_blank,
    load_format_name,
    lower,
    model_impl_name,
    or_auto,
    quantization_name,
)

LoadFormat = Literal["auto", "safetensors", "pt", "gguf", "dummy"]
Quantization = Literal[
    "auto-round",
    "awq",
    "awq_marlin",
    "bitsandbytes",
    "compressed-tensors",
    "fbgemm_fp8",
    "fp8",
    "gguf",
    "gptq",
    "gptq_marlin",
    "inc",
    "modelopt",
    "modelopt_fp4",
    "mxfp4",
    "squeezellm",
]


def _names(*names: str) -> Any:
    return AliasChoices(*names)


class Settings(BaseSettings):
    """The worker's settings. The first alias of a field is its name in the documentation."""

    model_config = SettingsConfigDict(env_ignore_empty=True, extra="ignore", populate_by_name=True, allow_inf_nan=False)

    # --- the model
    model_name: OptionalStr = Field(
        None,
        validation_alias=_names("MODEL_NAME", "MODEL"),
        description="Hugging Face id or directory of the model, or a GGUF file. A quantization of a repository of GGUF "
        "files follows a colon: `unsloth/Qwen3-8B-GGUF:Q4_K_M`. `demo` is the small model in the package.",
    )
    model_revision: OptionalStr = Field(
        None,
        validation_alias=_names("MODEL_REVISION", "REVISION"),
        description="Branch, tag or commit of the model's repository.",
    )
    hf_quantization: OptionalStr = Field(
        None,
        validation_alias=_names("HF_QUANTIZATION"),
        description="Quantization of a repository of GGUF files, such as Q4_K_M, where MODEL_NAME does not name it.",
    )
    hf_model_file: OptionalStr = Field(
        None,
        validation_alias=_names("HF_MODEL_FILE"),
        description="Name of a GGUF file in the model's repository or directory, where MODEL_NAME does not name it.",
    )
    tokenizer_name: OptionalStr = Field(
        None,
        validation_alias=_names("TOKENIZER_NAME", "TOKENIZER"),
        description="Hugging Face id or directory of the tokenizer. Unset: the model's own.",
    )
    tokenizer_revision: OptionalStr = Field(
        None,
        validation_alias=_names("TOKENIZER_REVISION"),
        description="Branch, tag or commit of the tokenizer's repository.",
    )
    base_path: str = Field(
        "/runpod-volume",
        validation_alias=_names("BASE_PATH"),
        description="Volume of the platform. Its `huggingface-cache/hub` is searched before the Hugging Face cache.",
    )
    download_dir: OptionalStr = Field(
        None,
        validation_alias=_names("DOWNLOAD_DIR"),
        description="Directory for downloaded models. Unset: the Hugging Face cache in HF_HOME.",
    )
    hf_token: SecretStr | None = Field(
        None,
        validation_alias=_names("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"),
        description="Hugging Face token, for gated and private models.",
    )
    load_format: Annotated[LoadFormat, BeforeValidator(load_format_name)] = Field(
        "auto",
        validation_alias=_names("LOAD_FORMAT"),
        description="Files to load weights from. auto takes safetensors, else files of torch.save (`.bin`), else GGUF. "
        "dummy reads no files and fills the model with random weights.",
    )
    hf_overrides: Annotated[
        dict[str, Any], NoDecode, BeforeValidator(forms.json_object('{"max_position_embeddings": 65536}'))
    ] = Field(
        default_factory=dict,
        validation_alias=_names("HF_OVERRIDES"),
        description='Fields that replace those of config.json, as JSON, such as {"max_position_embeddings": 65536}.',
    )
    model_impl: Annotated[Literal["auto", "ember", "transformers"], BeforeValidator(model_impl_name)] = Field(
        "auto",
        validation_alias=_names("MODEL_IMPL"),
        description="Code that computes the model. auto takes Ember's own where it knows the family, else that of "
        "transformers over Ember's paged attention, which is slower. ember, also called vllm, and transformers take "
        "one of the two.",
    )
    trust_remote_code: bool = Field(
        False,
        validation_alias=_names("TRUST_REMOTE_CODE"),
        description="Run Python code out of the model's repository, where neither Ember nor transformers has its "
        "class. Set it for repositories that you trust.",
    )
    runner: Annotated[Literal["auto", "generate", "pooling"], BeforeValidator(or_auto)] = Field(
        "auto",
        validation_alias=_names("RUNNER"),
        description="What the model is served for: generate answers with text, pooling with vectors or classes. auto "
        "goes by the model's class, and by the files of sentence-transformers beside it.",
    )
    convert: Annotated[Literal["auto", "none", "embed", "classify", "reward"], BeforeValidator(convert_name)] = Field(
        "auto",
        validation_alias=_names("CONVERT"),
        description="What a model makes of a text with RUNNER=pooling, which these values imply: embed a vector, "
        "classify scores of classes, reward a score of each token. auto goes by the model's class. none allows no "
        "conversion.",
    )
    task: Annotated[
        Literal["auto", "generate", "embed", "embedding", "classify", "score", "reward"], BeforeValidator(or_auto)
    ] = Field(
        "auto",
        validation_alias=_names("TASK"),
        description="Older setting in place of RUNNER and CONVERT, with which it must not contradict: generate, embed, "
        "classify, score or reward.",
    )
    pooler_config: Annotated[
        dict[str, Any], NoDecode, BeforeValidator(forms.json_object('{"pooling_type": "MEAN", "use_activation": true}'))
    ] = Field(
        default_factory=dict,
        validation_alias=_names("POOLER_CONFIG", "OVERRIDE_POOLER_CONFIG"),
        description='How a model of RUNNER=pooling pools, as JSON, such as {"pooling_type": "MEAN", "use_activation": '
        "true}: pooling_type (CLS, LAST, MEAN, MAX, WEIGHTED_MEAN, MEAN_SQRT_LEN), use_activation (normalised "
        "embeddings, probabilities), dimensions, logit_mean, logit_sigma, step_tag_id, returned_token_ids, task "
        "(the only one that is served). It holds against the model's own files.",
    )
    served_model_name: CommaList = Field(
        default_factory=list,
        validation_alias=_names("OPENAI_SERVED_MODEL_NAME_OVERRIDE", "SERVED_MODEL_NAME"),
        description="Names under which the model is served, separated by commas. Answers carry the first.",
    )
    model_aliases: CommaList = Field(
        default_factory=list,
        validation_alias=_names("MODEL_ALIASES"),
        description="Further names that requests may ask for, separated by commas, with * for any characters: "
        "`claude-*` serves clients that know only Anthropic's models. They are not listed by /v1/models.",
    )
    dtype: Annotated[Literal["auto", "bfloat16", "float16", "float32"], BeforeValidator(dtype_name)] = Field(
        "auto",
        validation_alias=_names("DTYPE"),
        description="Number format of weights and activations. auto takes the checkpoint's, or the one that the "
        "device computes fastest.",
    )
    quantization: Annotated[Quantization | None, BeforeValidator(quantization_name)] = Field(
        None,
        validation_alias=_names("QUANTIZATION"),
        description="Quantization method that the checkpoint must have. fp8 and bitsandbytes quantise a plain one "
        "while it loads. Unset: whichever config.json names.",
    )
    cpu_weights: Annotated[Literal["auto", "int8", "int4"], BeforeValidator(or_auto)] = Field(
        "auto",
        validation_alias=_names("CPU_WEIGHTS"),
        description="Number format of the weights on a CPU. auto keeps DTYPE. int8 and int4 (with embedding and "
        "head in int8) decode faster when few requests run.",
    )
    cpu_activations: Annotated[Literal["auto", "float"], BeforeValidator(or_auto)] = Field(
        "auto",
        validation_alias=_names("CPU_ACTIVATIONS"),
        description="Number format of the activations that quantised weights are multiplied with on a CPU. auto "
        "quantises them to 8 bits, as llama.cpp does, where the C library has such a product. float restores the "
        "weights and multiplies in bfloat16: slower, without that rounding.",
    )
    max_model_len: PositiveInt = Field(
        None,
        validation_alias=_names("MAX_MODEL_LEN"),
        description="Longest prompt and output together, in tokens (`32768`, `32k`). auto takes the model's limit, "
        "or less if the memory is short.",
    )

    # --- the engine
    device: Annotated[Literal["auto", "cpu", "cuda"], BeforeValidator(lower)] = Field(
        "auto", validation_alias=_names("DEVICE"), description="Device to run on. auto takes the GPU if there is one."
    )
    gpu_memory_utilization: float = Field(
        0.92,
        gt=0,
        le=1,
        validation_alias=_names("GPU_MEMORY_UTILIZATION"),
        description="Share of the GPU's memory that weights, activations and KV cache may use together.",
    )
    kv_cache_memory_bytes: PositiveInt = Field(
        None,
        validation_alias=_names("KV_CACHE_MEMORY_BYTES"),
        description="Size of the KV cache in bytes (`4G`). Unset: what GPU_MEMORY_UTILIZATION leaves.",
    )
    kv_cache_dtype: Annotated[Literal["auto", "fp8", "fp8_e4m3"], BeforeValidator(or_auto)] = Field(
        "auto",
        validation_alias=_names("KV_CACHE_DTYPE"),
        description="Number format of the KV cache. fp8 (the same as fp8_e4m3) halves its size. auto is that of the "
        "model, and on a GPU fp8 where the checkpoint says so.",
    )
    num_gpu_blocks_override: PositiveInt = Field(
        None, validation_alias=_names("NUM_GPU_BLOCKS_OVERRIDE"), description="Exact number of pages in the KV cache."
    )
    block_size: Annotated[Literal[8, 16, 32, 64, 128], BeforeValidator(human_int)] = Field(
        16, validation_alias=_names("BLOCK_SIZE"), description="Tokens in one page (block) of the KV cache."
    )
    max_num_seqs: PositiveInt = Field(
        None,
        validation_alias=_names("MAX_NUM_SEQS"),
        description="Most sequences that run at the same time. Unset: 256 on a GPU, 64 on a CPU.",
    )
    max_num_batched_tokens: NonNegativeInt = Field(
        None,
        validation_alias=_names("MAX_NUM_BATCHED_TOKENS"),
        description="Most tokens that one step computes. 0 or unset: 8192 on a GPU, 1024 on a CPU (2048 for pooling).",
    )
    enable_prefix_caching: bool = Field(
        True,
        validation_alias=_names("ENABLE_PREFIX_CACHING"),
        description="Keep the KV pages of prompts, and share them with requests that begin alike.",
    )
    state_checkpoints: NonNegativeInt = Field(
        None,
        validation_alias=_names("STATE_CHECKPOINTS"),
        description="Of models whose layers have states (docs/engine.md): the number of states in the prefix cache, "
        "each after a part of some prompt. 0: prompts are not shared. Unset or -1: up to 4 for each of MAX_NUM_SEQS, "
        "in a quarter of the memory that running sequences leave.",
    )
    scheduling_policy: Annotated[Literal["fcfs", "priority"], BeforeValidator(lower)] = Field(
        "fcfs",
        validation_alias=_names("SCHEDULING_POLICY"),
        description="Order in which waiting requests start: fcfs is first come, first served; priority goes by each "
        "request's `priority`.",
    )
    seed: Annotated[Annotated[int, Field(ge=-(2**63), le=MAX_INT)] | None, BeforeValidator(clean)] = Field(
        None,
        validation_alias=_names("SEED"),
        description="Seed for requests that have none of their own. Unset: a different one at every boot.",
    )
    num_threads: PositiveInt = Field(
        None,
        validation_alias=_names("NUM_THREADS", "OMP_NUM_THREADS"),
        description="Number of CPU threads. Unset: the physical cores that the process may use.",
    )
    engine_restarts: int = Field(
        3,
        ge=0,
        validation_alias=_names("ENGINE_RESTARTS"),
        description="How often a crashed engine is restarted before the worker exits.",
    )
    step_timeout: float = Field(
        300.0,
        ge=0,
        le=DAY_SECONDS,
        validation_alias=_names("STEP_TIMEOUT"),
        description="Seconds after which a step that does not return, or an engine that does not answer, counts as "
        "crashed. 0 never does.",
    )

    # --- the API
    custom_chat_template: OptionalStr = Field(
        None,
        validation_alias=_names("CUSTOM_CHAT_TEMPLATE", "CHAT_TEMPLATE"),
        description="Chat template as Jinja text, or the path of a file with it. Unset: the model's own.",
    )
    chat_template_content_format: Annotated[Literal["auto", "string", "openai"], BeforeValidator(lower)] = Field(
        "auto",
        validation_alias=_names("CHAT_TEMPLATE_CONTENT_FORMAT"),
        description="Form of a message's content in the template: string, or openai for a list of parts. auto "
        "detects it from the template.",
    )
    trust_request_chat_template: bool = Field(
        False,
        validation_alias=_names("TRUST_REQUEST_CHAT_TEMPLATE"),
        description="Accept chat templates in requests. They run in a sandbox, in a process of their own.",
    )
    chat_template_render_timeout: float = Field(
        10.0,
        gt=0,
        le=600,
        validation_alias=_names("CHAT_TEMPLATE_RENDER_TIMEOUT", "VLLM_CHAT_TEMPLATE_RENDER_TIMEOUT"),
        description="Seconds that a chat template from a request may take to render.",
    )
    default_chat_template_kwargs: Annotated[
        dict[str, Any], NoDecode, BeforeValidator(forms.json_object('{"enable_thinking": false}'))
    ] = Field(
        default_factory=dict,
        validation_alias=_names("DEFAULT_CHAT_TEMPLATE_KWARGS"),
        description='Variables for the chat template as JSON, such as {"enable_thinking": false}. A request can '
        "override them.",
    )
    tool_call_parser: FormatName = Field(
        None,
        validation_alias=_names("TOOL_CALL_PARSER"),
        description="Format of the model's tool calls (hermes, llama3_json, ...), or none. Unset: detected from its "
        "chat template.",
    )
    enable_auto_tool_choice: bool = Field(
        True,
        validation_alias=_names("ENABLE_AUTO_TOOL_CHOICE"),
        description='Allow tool_choice "auto", with which the model decides whether it calls a tool. false refuses it.',
    )
    exclude_tools_when_tool_choice_none: bool = Field(
        False,
        validation_alias=_names("EXCLUDE_TOOLS_WHEN_TOOL_CHOICE_NONE"),
        description='Leave the tools out of the prompt when tool_choice is "none".',
    )
    reasoning_parser: FormatName = Field(
        None,
        validation_alias=_names("REASONING_PARSER"),
        description="Format of the model's reasoning (qwen3, deepseek_r1, ...), or none. Unset: detected from its "
        "chat template.",
    )
    generation_config: str = Field(
        "auto",
        validation_alias=_names("GENERATION_CONFIG"),
        description="Source of the sampling defaults: auto is the model's generation_config.json, vllm is none, "
        "anything else a directory with one.",
    )
    override_generation_config: Annotated[
        dict[str, Any], NoDecode, BeforeValidator(forms.json_object('{"temperature": 0.6}'))
    ] = Field(
        default_factory=dict,
        validation_alias=_names("OVERRIDE_GENERATION_CONFIG"),
        description='Sampling defaults as JSON, such as {"temperature": 0.6}. '
        "They override those of GENERATION_CONFIG.",
    )
    response_role: str = Field(
        "assistant",
        validation_alias=_names("RESPONSE_ROLE", "OPENAI_RESPONSE_ROLE"),
        description="Role of the messages in chat answers.",
    )
    max_logprobs: int = Field(
        20,
        ge=-1,
        validation_alias=_names("MAX_LOGPROBS"),
        description="Most log probabilities per token that a request may ask for. -1 allows any number.",
    )
    max_stop_strings: int = Field(
        4,
        ge=0,
        validation_alias=_names("MAX_STOP_STRINGS", "VLLM_MAX_STOP_STRINGS"),
        description="Most stop strings that a request may have.",
    )
    enable_prompt_tokens_details: bool = Field(
        False,
        validation_alias=_names("ENABLE_PROMPT_TOKENS_DETAILS"),
        description="Report in `usage` how many prompt tokens came from the prefix cache.",
    )
    enable_force_include_usage: bool = Field(
        False,
        validation_alias=_names("ENABLE_FORCE_INCLUDE_USAGE"),
        description="Send `usage` in every stream, whether the request asks for it or not.",
    )
    stream_interval: int = Field(
        1,
        ge=1,
        validation_alias=_names("STREAM_INTERVAL"),
        description="Tokens of a choice in one chunk of a stream. Its first token always comes at once. A request "
        "can override it.",
    )
    return_tokens_as_token_ids: bool = Field(
        False,
        validation_alias=_names("RETURN_TOKENS_AS_TOKEN_IDS"),
        description="Name tokens as `token_id:123` in log probabilities.",
    )
    enable_request_id_headers: bool = Field(
        False,
        validation_alias=_names("ENABLE_REQUEST_ID_HEADERS"),
        description="Send an X-Request-Id header with each answer.",
    )
    enable_per_request_metrics: bool = Field(
        False,
        validation_alias=_names("ENABLE_PER_REQUEST_METRICS"),
        description="Report the times of a request in `metrics`, if it has one choice. A stream has them in the "
        "chunk with the usage.",
    )
    enable_tokenizer_info_endpoint: bool = Field(
        False,
        validation_alias=_names("ENABLE_TOKENIZER_INFO_ENDPOINT"),
        description="Serve GET /tokenizer_info, with the tokenizer's configuration and the chat template.",
    )
    enable_scale_out: bool = Field(
        False,
        validation_alias=_names("ENABLE_SCALE_OUT", "VLLM_ENABLE_SCALE_OUT_ENDPOINTS"),
        description="Serve the routes that divide a request between servers: /render, /inference/v1/generate and "
        "/derender (docs/routes.md). Without it they are a 403.",
    )

    # --- the faces
    host: str = Field("0.0.0.0", validation_alias=_names("HOST"), description="Address on which `ember serve` listens.")
    port: int = Field(
        8000,
        ge=0,
        le=65535,
        validation_alias=_names("PORT"),
        description="Port on which `ember serve` listens. 0 takes a free one.",
    )
    api_key: Annotated[list[SecretStr], NoDecode, BeforeValidator(comma_list)] = Field(
        default_factory=list,
        validation_alias=_names("API_KEY", "VLLM_API_KEY"),
        description="Keys that `ember serve` accepts as Bearer tokens, separated by commas.",
    )
    api_key_file: OptionalStr = Field(
        None,
        validation_alias=_names("API_KEY_FILE"),
        description="File with further keys, one a line. Empty lines and lines that begin with # are skipped.",
    )
    admin_api_key: Annotated[list[SecretStr], NoDecode, BeforeValidator(comma_list)] = Field(
        default_factory=list,
        validation_alias=_names("ADMIN_API_KEY"),
        description="Keys of the operator, separated by commas: for the routes of SERVER_DEV_MODE, and every other.",
    )
    server_dev_mode: bool = Field(
        False,
        validation_alias=_names("SERVER_DEV_MODE", "VLLM_SERVER_DEV_MODE"),
        description="Serve the operator's routes: /sleep, /wake_up, /pause, /abort_requests, /reset_prefix_cache, "
        "/server_info and others (docs/routes.md).",
    )
    enable_sleep_mode: bool = Field(
        False,
        validation_alias=_names("ENABLE_SLEEP_MODE"),
        description="Let POST /sleep free the device's memory. It needs SERVER_DEV_MODE.",
    )
    allowed_origins: Annotated[
        list[Annotated[str, AfterValidator(forms.origin)]],
        NoDecode,
        BeforeValidator(lambda value: comma_list(forms.origin_list(value))),
    ] = Field(
        default_factory=list,
        validation_alias=_names("ALLOWED_ORIGINS"),
        description="Origins whose pages may call `ember serve` from a browser (CORS), separated by commas. `*` "
        "allows all. Unset: none.",
    )
    page: bool = Field(
        True,
        validation_alias=_names("PAGE"),
        description="Answer a browser's GET of `/` with a page to try and watch the model, on `ember serve` and "
        "`ember platform`.",
    )
    root_path: Annotated[str, BeforeValidator(lambda value: clean(value) or ""), AfterValidator(forms.root_path)] = (
        Field(
            "",
            validation_alias=_names("ROOT_PATH"),
            description="Path under which a proxy publishes `ember serve`, such as /llm. It is removed before routes "
            "are matched.",
        )
    )
    responses_store: Annotated[str, Field(pattern="^(auto|off|memory|sqlite:.+)$")] = Field(
        "auto",
        validation_alias=_names("RESPONSES_STORE"),
        description="Where responses of /v1/responses are kept: memory, a file (`sqlite:/data/responses.db`), or off. "
        "auto keeps those of HTTP requests in memory, and none of queue jobs.",
    )
    responses_store_bytes: Annotated[int, Field(ge=0, le=MAX_INT), BeforeValidator(byte_count)] = Field(
        256 * 2**20,
        validation_alias=_names("RESPONSES_STORE_BYTES"),
        description="Largest size of all stored responses, in bytes (`256M`). The oldest are dropped first.",
    )
    responses_store_seconds: Annotated[float, Field(gt=0, le=10000 * DAY_SECONDS)] = Field(
        float(DAY_SECONDS),
        validation_alias=_names("RESPONSES_STORE_SECONDS"),
        description="Seconds after which a stored response is dropped.",
    )
    batch_dir: OptionalStr = Field(
        None,
        validation_alias=_names("BATCH_DIR"),
        description="Directory of /v1/files and /v1/batches, which are off without it. A server that starts goes on "
        "with the batches there that are not over.",
    )
    max_request_bytes: Annotated[int, Field(ge=1024, le=2**31), BeforeValidator(byte_count)] = Field(
        32 * 2**20,
        validation_alias=_names("MAX_REQUEST_BYTES", "VLLM_HTTP_MAX_REQUEST_BODY_SIZE"),
        description="Largest request body that `ember serve` accepts, in bytes (`32M`).",
    )
    port_health: Annotated[Annotated[int, Field(ge=0, le=65535)] | None, BeforeValidator(clean)] = Field(
        None,
        validation_alias=_names("PORT_HEALTH"),
        description="Further port on which `ember serve` answers health checks. Unset: PORT alone.",
    )
    platform_store: Annotated[
        str, BeforeValidator(lambda value: clean(value) or "memory"), AfterValidator(forms.store)
    ] = Field(
        "memory",
        validation_alias=_names("PLATFORM_STORE", "STORE"),
        description="Where `ember platform` keeps jobs and results: memory, or sqlite:FILE, which survives a restart.",
    )
    health_check_path: Annotated[str, AfterValidator(forms.url_path)] = Field(
        "/ping",
        validation_alias=_names("HEALTH_CHECK_PATH"),
        description="Path of the load balancer's health check. It answers 204 while the model loads, 200 when it is "
        "ready, 503 when the engine is dead.",
    )
    max_concurrency: PositiveInt = Field(
        None,
        validation_alias=_names("MAX_CONCURRENCY"),
        description="Most jobs that run at the same time. Unset: MAX_NUM_SEQS.",
    )
    queue_client: Annotated[Literal["runpod", "direct"], BeforeValidator(lower)] = Field(
        "runpod",
        validation_alias=_names("QUEUE_CLIENT"),
        description="Client for the queue: runpod is the platform's SDK, direct is Ember's own.",
    )
    drain_timeout: float = Field(
        30.0,
        ge=0,
        le=DAY_SECONDS,
        validation_alias=_names("DRAIN_TIMEOUT", "SHUTDOWN_TIMEOUT"),
        description="Seconds that jobs and requests in flight have to finish after SIGTERM. What is left then ends "
        "with an error.",
    )
    max_num_queued_reqs: PositiveInt = Field(
        None,
        validation_alias=_names("MAX_NUM_QUEUED_REQS"),
        description="Most requests that wait for their first token. A further one gets a 503, and no further job is "
        "taken. Unset: no limit.",
    )
    max_num_queued_tokens: PositiveInt = Field(
        None,
        validation_alias=_names("MAX_NUM_QUEUED_TOKENS"),
        description="Most prompt tokens of all requests that wait for their first token. Beyond them the same "
        "happens. Unset: no limit.",
    )
    default_batch_size: PositiveInt = Field(
        None,
        validation_alias=_names("DEFAULT_BATCH_SIZE"),
        description="Most chunks in one message of a streamed job. Unset: all that were generated while the "
        "previous message was sent.",
    )
    min_batch_size: PositiveInt = Field(
        None,
        validation_alias=_names("MIN_BATCH_SIZE", "DEFAULT_MIN_BATCH_SIZE"),
        description="Fewest chunks in one message of a streamed job; the last may have fewer. Unset: 1, so that "
        "nothing waits.",
    )
    batch_size_growth_factor: Annotated[Annotated[float, Field(ge=1, le=1000)] | None, BeforeValidator(clean)] = Field(
        None,
        validation_alias=_names("BATCH_SIZE_GROWTH_FACTOR"),
        description="Factor by which the fewest chunks of a message grow from one message to the next, up to "
        "DEFAULT_BATCH_SIZE.",
    )
    native_output: Annotated[Literal["openai", "tokens"], BeforeValidator(lower)] = Field(
        "openai",
        validation_alias=_names("NATIVE_OUTPUT"),
        description="Output of jobs with `messages` or `prompt`. openai is that of the OpenAI routes. tokens is "
        "`choices[].tokens` and a usage with `input` and `output`, as older workers have it.",
    )
    raw_openai_output: bool = Field(
        True,
        validation_alias=_names("RAW_OPENAI_OUTPUT"),
        description="Streamed jobs yield the text of server-sent events. false yields lists of parsed chunks.",
    )
    log_level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(lower)] = Field(
        "info", validation_alias=_names("LOG_LEVEL"), description="Lowest level of the lines that are logged to stderr."
    )
    log_format: Annotated[Literal["text", "json"], BeforeValidator(lower)] = Field(
        "text",
        validation_alias=_names("LOG_FORMAT"),
        description="Form of the log: text, or json with one JSON object a line.",
    )
    otlp_traces_endpoint: Annotated[OptionalStr, AfterValidator(forms.http_url)] = Field(
        None,
        validation_alias=_names("OTLP_TRACES_ENDPOINT"),
        description="URL to which a span for each request is sent, as OTLP over HTTP "
        "(`http://collector:4318/v1/traces`). It needs the `otel` extra.",
    )
    warmup: Annotated[Literal["none", "eager", "full"], BeforeValidator(lambda value: lower(value) or "none")] = Field(
        "none",
        validation_alias=_names("WARMUP"),
        description="Work that is done before the worker is ready, for platforms that snapshot a warm process. eager "
        "runs a request of its own; full also packs the weights and records every CUDA graph. none boots fastest.",
    )
    enforce_eager: bool = Field(
        False,
        validation_alias=_names("ENFORCE_EAGER"),
        description="On a GPU, launch every step kernel by kernel. Otherwise steps of up to 1,024 tokens are recorded "
        "as CUDA graphs, in idle moments after the first answer.",
    )
    lean_torch: bool = Field(
        True,
        validation_alias=_names("EMBER_LEAN_TORCH"),
        description="Import only the parts of torch that the engine needs, and the others when something asks for "
        "them. docs/boot.md has more.",
    )
    boot_report: OptionalStr = Field(
        None,
        validation_alias=_names("EMBER_BOOT_REPORT"),
        description="File to which the boot timeline is written as JSON.",
    )

    @field_validator("max_num_batched_tokens")
    @classmethod
    def _zero_is_unset(cls, value: int | None) -> int | None:
        return value or None

    @field_validator("task")
    @classmethod
    def _agrees(cls, value: str, info: ValidationInfo) -> str:
        for name, meant in zip(("runner", "convert"), forms.TASKS[value], strict=True):
            given = info.data.get(name, "auto")
            if "auto" not in (given, meant) and given != meant:
                raise ValueError(
                    f"it means {name.upper()}={meant}, but {name.upper()} is {given}: leave one of them out"
                )
        return value

    @field_validator("api_key", "admin_api_key", mode="before")
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
        environment.env_vars = {name: value for name, value in found.items() if not is_blank(name, value)}
        return init_settings, environment

    @property
    def tasks(self) -> tuple[str, str]:
        """RUNNER and CONVERT, which TASK may say in their place."""
        runner, convert = forms.TASKS[self.task]
        return (
            self.runner if self.runner != "auto" else runner,
            self.convert if self.convert != "auto" else convert,
        )

    @property
    def served_names(self) -> list[str]:
        """The names the API knows the model by; the first is the one it answers with."""
        return self.served_model_name or [self.model_name or "demo"]

    def serves(self, name: str) -> bool:
        """Whether a request may ask for the model by this name."""
        return name in self.served_names or any(fnmatchcase(name, alias) for alias in self.model_aliases)


def variable_names(field: str) -> list[str]:
    """The environment variables of a field; the first is the one it is documented under."""
    alias = Settings.model_fields[field].validation_alias
    assert isinstance(alias, AliasChoices)
    return [str(choice) for choice in alias.choices]
