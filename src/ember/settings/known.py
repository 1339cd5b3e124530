"""Variables of other workers that have no effect in Ember, each with advice.

Setting one of them logs one warning at boot and changes nothing else; there is no warning where the value asks for what
Ember does in any case. A variable that Ember begins to read has to be
removed from this table in the same commit.
"""

_LATER = "not in this version of Ember"

_GROUPS: dict[str, str] = {
    # --- the model and its files
    "code out of a model's repository is that of MODEL_REVISION": "CODE_REVISION",
    "MODEL_IMPL says whose code computes a model": "MODEL_CLASS_OVERRIDES",
    "weight files are always read in parallel": (
        "MODEL_LOADER_EXTRA_CONFIG SAFETENSORS_LOAD_STRATEGY MAX_PARALLEL_LOADING_WORKERS "
        "PT_LOAD_MAP_LOCATION IGNORE_PATTERNS USE_TQDM_ON_LOAD SAFETENSORS_PREFETCH_BLOCK_SIZE "
        "SAFETENSORS_PREFETCH_NUM_THREADS"
    ),
    "set HF_OVERRIDES, or edit the model's config.json, which is what Ember reads": (
        "HF_CONFIG_PATH CONFIG_FORMAT ROPE_SCALING ROPE_THETA DISABLE_SLIDING_WINDOW OVERRIDE_ATTENTION_DTYPE"
    ),
    "the tokenizer is the model's tokenizer.json or that of TOKENIZER_NAME": "TOKENIZER_MODE SKIP_TOKENIZER_INIT",
    "plugins are not loaded": "IO_PROCESSOR_PLUGIN VLLM_PLUGINS",
    "models come from the Hugging Face Hub": "VLLM_USE_MODELSCOPE",
    "DOWNLOAD_DIR and BASE_PATH say where files are kept": "VLLM_CACHE_ROOT",
    "the installed transformers is never changed at boot; use another image": "TRANSFORMERS_VERSION",
    # --- one device
    "one worker uses one device; scale by more workers": (
        "TENSOR_PARALLEL_SIZE PIPELINE_PARALLEL_SIZE DATA_PARALLEL_SIZE DATA_PARALLEL_SIZE_LOCAL DATA_PARALLEL_RANK "
        "DATA_PARALLEL_START_RANK DATA_PARALLEL_ADDRESS DATA_PARALLEL_RPC_PORT DATA_PARALLEL_BACKEND "
        "DATA_PARALLEL_HYBRID_LB DECODE_CONTEXT_PARALLEL_SIZE ENABLE_EXPERT_PARALLEL DISTRIBUTED_EXECUTOR_BACKEND "
        "DISABLE_CUSTOM_ALL_REDUCE RAY_WORKERS_USE_NSIGHT ENABLE_EPLB EPLB_CONFIG EPLB_STEP_INTERVAL EPLB_WINDOW_SIZE "
        "EPLB_LOG_BALANCEDNESS NUM_REDUNDANT_EXPERTS EXPERT_PLACEMENT_STRATEGY ENABLE_DBO DBO_DECODE_TOKEN_THRESHOLD "
        "DBO_PREFILL_TOKEN_THRESHOLD "
        "WORKER_CLS WORKER_EXTENSION_CLS ENABLE_MULTIMODAL_ENCODER_DATA_PARALLEL PREFILL_CONTEXT_PARALLEL_SIZE "
        "DATA_PARALLEL_EXTERNAL_LB DATA_PARALLEL_MULTI_PORT_EXTERNAL_LB DATA_PARALLEL_SUPERVISOR_PORT "
        "DP_SUPERVISOR_PROBE_INTERVAL_S DP_SUPERVISOR_PROBE_TIMEOUT_S DP_SUPERVISOR_PROBE_FAILURE_THRESHOLD "
        "DCP_COMM_BACKEND DCP_KV_CACHE_INTERLEAVE_SIZE CP_KV_CACHE_INTERLEAVE_SIZE DISTRIBUTED_TIMEOUT_SECONDS "
        "ENABLE_EP_WEIGHT_FILTER ENABLE_ELASTIC_EP ALL2ALL_BACKEND UBATCH_SIZE DISABLE_NCCL_FOR_DP_SYNCHRONIZATION "
        "AGGREGATE_ENGINE_LOGGING"
    ),
    # --- the engine
    "there is no swap space; preempted requests are recomputed": "SWAP_SPACE CPU_OFFLOAD_GB KV_OFFLOADING_SIZE "
    "KV_OFFLOADING_BACKEND KV_TRANSFER_CONFIG KV_EVENTS_CONFIG EC_TRANSFER_CONFIG CPU_OFFLOAD_PARAMS OFFLOAD_BACKEND "
    "OFFLOAD_GROUP_SIZE OFFLOAD_NUM_IN_GROUP OFFLOAD_PREFETCH_STEP OFFLOAD_PARAMS",
    "scales of the KV cache come from the checkpoint, or are 1": "CALCULATE_KV_SCALES",
    "prompts pass through all layers, also those that read the K and V of earlier ones": "KV_SHARING_FAST_PREFILL",
    "the engine chooses its kernels and graphs; there is nothing to set": (
        "COMPILATION_CONFIG CUDA_GRAPH_SIZES CUDAGRAPH_CAPTURE_SIZES MAX_CUDAGRAPH_CAPTURE_SIZE "
        "MAX_SEQ_LEN_TO_CAPTURE ATTENTION_BACKEND ATTENTION_CONFIG DISABLE_CASCADE_ATTN VLLM_ATTENTION_BACKEND "
        "GDN_PREFILL_BACKEND MAMBA_BACKEND MAMBA_CONFIG MOE_BACKEND LINEAR_BACKEND KERNEL_CONFIG IR_OP_PRIORITY "
        "OPTIMIZATION_LEVEL PERFORMANCE_MODE ENABLE_FLASHINFER_AUTOTUNE ENABLE_CUMEM_ALLOCATOR"
    ),
    "prompts are always processed in chunks; MAX_NUM_BATCHED_TOKENS is the chunk's bound": (
        "ENABLE_CHUNKED_PREFILL LONG_PREFILL_TOKEN_THRESHOLD MAX_LONG_PARTIAL_PREFILLS MAX_NUM_PARTIAL_PREFILLS "
        "SCHEDULER_DELAY_FACTOR NUM_LOOKAHEAD_SLOTS NUM_SCHEDULER_STEPS MAX_NUM_SCHEDULED_TOKENS"
    ),
    "there is one scheduler; SCHEDULING_POLICY is what it can be told": (
        "SCHEDULER_CLS ASYNC_SCHEDULING DISABLE_HYBRID_KV_CACHE_MANAGER SCHEDULER_RESERVE_FULL_ISL"
    ),
    "prefixes are found by one hash; ENABLE_PREFIX_CACHING turns it on and off": "PREFIX_CACHING_HASH_ALGO",
    f"speculative decoding is {_LATER}": (
        "SPECULATIVE_CONFIG SPECULATIVE_METHOD SPECULATIVE_MODEL SPECULATIVE_MODEL_REVISION SPECULATIVE_QUANTIZATION "
        "SPECULATIVE_DRAFT_TENSOR_PARALLEL_SIZE SPECULATIVE_MAX_MODEL_LEN SPECULATIVE_DISABLE_BY_BATCH_SIZE "
        "SPECULATIVE_ENFORCE_EAGER NUM_SPECULATIVE_TOKENS NGRAM_PROMPT_LOOKUP_MIN NGRAM_PROMPT_LOOKUP_MAX "
        "SPEC_MODEL SPEC_METHOD SPEC_TOKENS"
    ),
    f"LoRA adapters are {_LATER}; serve a merged model": (
        "ENABLE_LORA LORA_MODULES LORA_DTYPE MAX_LORAS MAX_LORA_RANK MAX_CPU_LORAS FULLY_SHARDED_LORAS "
        "ENABLE_LORA_BIAS LORA_EXTRA_VOCAB_SIZE DEFAULT_MM_LORAS VLLM_ALLOW_RUNTIME_LORA_UPDATING "
        "VLLM_LORA_RESOLVER_CACHE_DIR VLLM_LORA_RESOLVER_HF_REPO_LIST ENABLE_TOWER_CONNECTOR_LORA LORA_TARGET_MODULES "
        "SPECIALIZE_ACTIVE_LORA ENABLE_MIXED_MOE_LORA_FORMAT"
    ),
    "the states of layers have the type that the model names": "MAMBA_CACHE_DTYPE MAMBA_SSM_CACHE_DTYPE",
    "STATE_CHECKPOINTS says whether prompts share the states of layers": "MAMBA_CACHE_MODE MAMBA_BLOCK_SIZE",
    "KV_CACHE_DTYPE holds for all layers": "KV_CACHE_DTYPE_SKIP_LAYERS",
    "weights have the format of the checkpoint, or that of QUANTIZATION": "QUANTIZATION_CONFIG",
    "answers have no expert routing and no sampling mask": "ENABLE_RETURN_ROUTED_EXPERTS RETURN_SAMPLING_MASK",
    "weights are those of the boot": "WEIGHT_TRANSFER_CONFIG",
    "logprobs are of the raw distribution": "LOGPROBS_MODE",
    "logit processors are not loaded; use logit_bias, bad_words or allowed_token_ids in the request": (
        "LOGITS_PROCESSORS LOGITS_PROCESSOR_PATTERN"
    ),
    "the engine is configured by the settings of this worker alone": (
        "ADDITIONAL_CONFIG VLLM_USE_DEEP_GEMM VLLM_USE_V1"
    ),
    # --- the API
    "formats of tool calls and of reasoning are data of Ember; choose one with TOOL_CALL_PARSER or REASONING_PARSER": (
        "TOOL_PARSER_PLUGIN REASONING_PARSER_PLUGIN"
    ),
    "a call follows its schema where a tool has `strict` or tool_choice demands a call": "TOOL_STRICT_LEVEL",
    "tools run at the client, which gets the calls": "TOOL_SERVER",
    "reasoning is split from the answer where the model's form of it is known; REASONING_PARSER=none turns it off": (
        "ENABLE_REASONING"
    ),
    "reasoning_effort goes to the chat template as it is": "REASONING_EFFORT_MAP",
    "a request bounds its reasoning with thinking_token_budget": "REASONING_EFFORT_BUDGETS REASONING_CONFIG",
    "thinking that a request disables is switched off in the chat template": "ANTHROPIC_DISABLED_THINKING_EFFORT",
    "Cohere's chats are not served": "COHERE_FORMAT COHERE_IS_REASONING_MODEL",
    "all routes of the model's tasks are served, and ENABLE_SCALE_OUT adds those of token ids": "TOKENS_ONLY",
    "structured output has one backend, which refuses what it cannot do": (
        "GUIDED_DECODING_BACKEND GUIDED_DECODING_DISABLE_FALLBACK"
    ),
    "a request says it in `structured_outputs`: disable_any_whitespace, disable_additional_properties": (
        "STRUCTURED_OUTPUTS_CONFIG GUIDED_DECODING_DISABLE_ANY_WHITESPACE GUIDED_DECODING_DISABLE_ADDITIONAL_PROPERTIES"
    ),
    f"images, audio and video are {_LATER}": (
        "LIMIT_MM_PER_PROMPT LANGUAGE_MODEL_ONLY MEDIA_IO_KWARGS MM_PROCESSOR_KWARGS MM_PROCESSOR_CACHE_GB "
        "MM_PROCESSOR_CACHE_TYPE MM_SHM_CACHE_MAX_OBJECT_SIZE_MB MM_ENCODER_TP_MODE SKIP_MM_PROFILING "
        "INTERLEAVE_MM_STRINGS ALLOWED_LOCAL_MEDIA_PATH ALLOWED_MEDIA_DOMAINS VIDEO_PRUNING_RATE "
        "DISABLE_CHUNKED_MM_INPUT DISABLE_MM_PREPROCESSOR_CACHE TRUST_REQUEST_MM_KWARGS ENABLE_MM_EMBEDS "
        "VLLM_IMAGE_FETCH_TIMEOUT VLLM_VIDEO_FETCH_TIMEOUT VLLM_AUDIO_FETCH_TIMEOUT VLLM_MAX_MEDIA_DOWNLOAD_SIZE_MB "
        "VLLM_MAX_IMAGE_PIXELS VLLM_MEDIA_URL_ALLOW_REDIRECTS MM_ENCODER_ONLY MM_ENCODER_ATTN_BACKEND "
        "MM_ENCODER_ATTN_DTYPE MM_TENSOR_IPC"
    ),
    "prompts are text or token ids": "ENABLE_PROMPT_EMBEDS",
    "deployments of other workers always set it, and it would delay streams; set BATCH_SIZE_GROWTH_FACTOR": (
        "DEFAULT_BATCH_SIZE_GROWTH_FACTOR"
    ),
    "neither prompts nor answers are ever logged": (
        "ENABLE_LOG_REQUESTS DISABLE_LOG_REQUESTS ENABLE_LOG_OUTPUTS ENABLE_LOG_DELTAS MAX_LOG_LEN LOG_ERROR_STACK"
    ),
    "set LOG_LEVEL": (
        "UVICORN_LOG_LEVEL VLLM_LOGGING_LEVEL LOG_CONFIG_FILE LOGGING_CONFIG DISABLE_UVICORN_ACCESS_LOG "
        "DISABLE_ACCESS_LOG_FOR_ENDPOINTS"
    ),
    "GET /metrics and GET /load are always there, and each request has one line in the log": (
        "DISABLE_LOG_STATS SHOW_HIDDEN_METRICS_FOR_VERSION ENABLE_SERVER_LOAD_TRACKING CUSTOM_HISTOGRAM_BUCKETS "
        "KV_CACHE_METRICS KV_CACHE_METRICS_SAMPLE CUDAGRAPH_METRICS ENABLE_MFU_METRICS "
        "ENABLE_LOGGING_ITERATION_DETAILS"
    ),
    "OTLP_TRACES_ENDPOINT has one span for each request": (
        "COLLECT_DETAILED_TRACES ENABLE_LAYERWISE_NVTX_TRACING PROFILER_CONFIG"
    ),
    "ALLOWED_ORIGINS is all there is to set about CORS": "ALLOW_CREDENTIALS ALLOWED_METHODS ALLOWED_HEADERS",
    "put a proxy in front of `ember serve`": (
        "SSL_KEYFILE SSL_CERTFILE SSL_CA_CERTS "
        "SSL_CERT_REQS SSL_CIPHERS ENABLE_SSL_REFRESH UDS MIDDLEWARE H11_MAX_HEADER_COUNT H11_MAX_INCOMPLETE_EVENT_SIZE"
    ),
    "there is one API server": (
        "API_SERVER_COUNT DISABLE_FRONTEND_MULTIPROCESSING VLLM_USE_RUST_FRONTEND RENDERER_NUM_WORKERS"
    ),
    "RESPONSES_STORE says where responses are stored; over HTTP they are by default": "VLLM_ENABLE_RESPONSES_API_STORE",
    "a request names one of the served models; MODEL_ALIASES adds patterns": "VLLM_SKIP_MODEL_NAME_VALIDATION",
    "the limits of a request's lists are fixed": (
        "VLLM_MAX_N_SEQUENCES VLLM_MAX_COMPLETION_PROMPTS VLLM_MAX_NUM_BAD_WORDS"
    ),
    "grammars are compiled and calls are read within limits of their own": (
        "VLLM_REGEX_COMPILATION_TIMEOUT_S VLLM_TOOL_PARSE_REGEX_TIMEOUT_SECONDS"
    ),
    "a tool with `strict`, and a call that is demanded, always follow their schema": (
        "VLLM_ENFORCE_STRICT_TOOL_CALLING"
    ),
    "streams have no comments between events": "SSE_KEEP_ALIVE_INTERVAL",
    "idle connections have limits of their own": "VLLM_HTTP_TIMEOUT_KEEP_ALIVE",
    "system_fingerprint has one form": "FINGERPRINT_MODE FINGERPRINT_VALUE",
    "GET /openapi.json is behind the key like every route; PAGE=false turns the page off": (
        "DISABLE_FASTAPI_DOCS ENABLE_OFFLINE_DOCS"
    ),
    # --- the process
    "the engine is a process of this worker, reached without a port": "VLLM_PORT VLLM_BASE_URL",
    "the worker waits for its engine as long as the platform lets it": (
        "VLLM_STARTUP_TIMEOUT VLLM_ENGINE_READY_TIMEOUT_S"
    ),
    "a worker whose engine has failed for good exits, so that the platform replaces it": (
        "VLLM_KEEP_ALIVE_ON_ENGINE_DEATH"
    ),
    "nothing is reported to anybody": "VLLM_NO_USAGE_STATS",
    "there is no realtime server; use `ember serve`": "RUNPOD_REALTIME_PORT RUNPOD_REALTIME_CONCURRENCY",
    "outputs are JSON, and nothing is uploaded": ("BUCKET_ENDPOINT_URL BUCKET_ACCESS_KEY_ID BUCKET_SECRET_ACCESS_KEY"),
    "the boot of the engine tests the GPU, and the queue the network": (
        "RUNPOD_NETWORK_CHECK_TIMEOUT RUNPOD_GPU_BENCHMARK_TIMEOUT RUNPOD_GPU_TEST_TIMEOUT "
        "RUNPOD_GPU_MAX_ERROR_MESSAGES RUNPOD_BINARY_GPU_TEST_PATH"
    ),
    "a request runs until it ends or its job is cancelled; bound it with max_tokens": "REQUEST_TIMEOUT",
}

KNOWN_UNUSED: dict[str, str] = {name: hint for hint, names in _GROUPS.items() for name in names.split()}

# Flags of `vllm serve` whose names, as variables, belong to others.
UNUSED_FLAGS: dict[str, str] = {
    "CONFIG": "VLLM_CONFIG_FILE names the YAML file",
    "GRPC": "there is no gRPC server",
    **dict.fromkeys(
        (
            "HEADLESS",
            "MASTER_ADDR",
            "MASTER_PORT",
            "NNODES",
            "NODE_RANK",
            "NUMA_BIND",
            "NUMA_BIND_NODES",
            "NUMA_BIND_CPUS",
        ),
        KNOWN_UNUSED["TENSOR_PARALLEL_SIZE"],
    ),
}

# Values that ask for what Ember does in any case -> the variables that may have them without a warning.
_MET_ANYWAY: dict[str, str] = {
    "1": (
        "TENSOR_PARALLEL_SIZE PIPELINE_PARALLEL_SIZE DATA_PARALLEL_SIZE DATA_PARALLEL_SIZE_LOCAL "
        "DECODE_CONTEXT_PARALLEL_SIZE API_SERVER_COUNT NUM_SCHEDULER_STEPS VLLM_ENABLE_RESPONSES_API_STORE "
        "VLLM_ENFORCE_STRICT_TOOL_CALLING VLLM_NO_USAGE_STATS"
    ),
    "0": (
        "SWAP_SPACE CPU_OFFLOAD_GB KV_OFFLOADING_SIZE NUM_REDUNDANT_EXPERTS DATA_PARALLEL_RANK NUM_SPECULATIVE_TOKENS "
        "SSE_KEEP_ALIVE_INTERVAL VLLM_USE_MODELSCOPE VLLM_SKIP_MODEL_NAME_VALIDATION "
        "VLLM_KEEP_ALIVE_ON_ENGINE_DEATH VLLM_USE_RUST_FRONTEND RUNPOD_REALTIME_PORT"
    ),
    "auto": "TOKENIZER_MODE CONFIG_FORMAT",
    "raw_logprobs": "LOGPROBS_MODE",
    "true": "ENABLE_CHUNKED_PREFILL DISABLE_LOG_REQUESTS",
    "false": (
        "DISABLE_SLIDING_WINDOW SKIP_TOKENIZER_INIT ENABLE_EXPERT_PARALLEL ENABLE_EPLB ENABLE_DBO "
        "DATA_PARALLEL_HYBRID_LB CALCULATE_KV_SCALES KV_SHARING_FAST_PREFILL ENABLE_LORA FULLY_SHARDED_LORAS "
        "ENABLE_LORA_BIAS LANGUAGE_MODEL_ONLY ENABLE_MM_EMBEDS TRUST_REQUEST_MM_KWARGS "
        "ENABLE_PROMPT_EMBEDS ENABLE_LOG_REQUESTS ENABLE_LOG_OUTPUTS ALLOW_CREDENTIALS ENABLE_SSL_REFRESH"
    ),
}
_SAME = {"yes": "true", "on": "true", "no": "false", "off": "false"}
_SWITCHES = frozenset(_MET_ANYWAY["true"].split() + _MET_ANYWAY["false"].split())


def is_met_anyway(name: str, value: object) -> bool:
    """Whether a variable without effect has a value that asks for what Ember does in any case."""
    text = str(value).strip().lower()
    text = _SAME.get(text, text)
    if name in _SWITCHES:
        text = {"1": "true", "0": "false"}.get(text, text)
    return name in _MET_ANYWAY.get(text, "").split()
