"""The messages between the two processes: msgspec structs as msgpack, each frame prefixed by its length.

The front sends a `FrontMessage`, the engine an `EngineMessage`, over one socketpair. Everything that one engine step
produced travels in one `Outputs`; everything the front wants before the next step in one frame holding a list.
"""

from __future__ import annotations

import socket
import struct
from typing import Any, Literal

import msgspec
from msgspec import Struct

MAX_FRAME_BYTES = 1 << 30
_LENGTH = struct.Struct("<I")


class Grammar(Struct, frozen=True, omit_defaults=True):
    """A grammar that a sample's text must match, from its first token or from the end of its reasoning.

    The engine compiles it. A grammar that cannot be compiled comes back as an error with `error_param`, before any
    token.
    """

    kind: str  # regex, gbnf, lark, json (a Lark grammar of JSON), json_schema
    text: str
    param: str = "structured_outputs"  # the field of the request it comes from, for errors


class Thinking(Struct, frozen=True, omit_defaults=True):
    """How the engine tells a sample's reasoning from its answer, for a grammar that begins after it and for a
    budget."""

    end_token_ids: list[list[int]]  # spellings of what ends it, each a sequence of ids
    start_token_ids: list[int] = []  # what begins it; empty = it begins in the prompt or not at all
    is_open: bool = False  # the prompt ends inside reasoning
    is_over: bool = False  # it ended in the prompt: a grammar holds from the first token
    budget: int | None = None  # reasoning tokens at most; after them the end is forced
    forced_token_ids: list[int] = []  # what is forced then; empty = the first spelling of the end
    break_token_ids: list[list[int]] = []  # what ends it and belongs to what follows: the start of a tool call
    gap_token_ids: list[int] = []  # forced between the end and a grammar's first token: the blank lines of a template


class SamplingParams(Struct, frozen=True, omit_defaults=True):
    """How one request is decoded. The front validates all values. Ids are token ids."""

    max_tokens: int
    n: int = 1
    temperature: float = 1.0  # 0 = greedy
    top_p: float = 1.0
    top_k: int = 0  # 0 = off
    min_p: float = 0.0
    repetition_penalty: float = 1.0  # over prompt and output
    presence_penalty: float = 0.0  # over output
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    allowed_token_ids: list[int] | None = None
    bad_words: list[list[int]] = []  # token sequences that must not be completed
    min_tokens: int = 0  # EOS and stop ids are masked before that many output tokens
    ignore_eos: bool = False
    stop_token_ids: list[int] = []  # beside the model's own EOS ids
    seed: int | None = None  # same seed, same tokens; sample i of n uses seed + i
    logprobs: int | None = None  # None = off, N = sampled token and the top N, -1 = whole vocabulary
    logprob_token_ids: list[int] = []  # whose log probabilities come too, at every output token that has any
    prompt_logprobs: int | None = None  # the same for the prompt's tokens
    grammar: Grammar | None = None
    thinking: Thinking | None = None  # None = no reasoning: a grammar holds from the first token


# What a model is asked to do with a prompt, in vLLM's names. `token_embed` and `token_classify` are of every token.
PoolingTask = Literal["embed", "token_embed", "classify", "token_classify", "score"]
Task = Literal["generate"] | PoolingTask

# ---------------------------------------------------------------------------------------------- front -> engine


class Configure(Struct, tag="configure", frozen=True):
    """The first message: what to load and how to run. With None the engine decides."""

    model: str
    revision: str | None = None
    tokenizer: str | None = None
    tokenizer_revision: str | None = None
    base_path: str | None = None
    download_dir: str | None = None
    hf_token: str | None = None
    load_format: str = "auto"  # auto, safetensors, pt, gguf, dummy
    gguf_quantization: str | None = None  # which of several GGUF files, by its quantization
    gguf_file: str | None = None  # the same by its name
    hf_overrides: dict[str, Any] = {}  # fields that replace those of config.json
    model_impl: str = "auto"  # auto, ember, transformers: whose code computes the model
    trust_remote_code: bool = False  # whether code in the model's repository may run
    runner: str = "auto"  # auto, generate, pooling: what the model is served for
    convert: str = "auto"  # auto, none, embed, classify, reward: what a pooling model makes
    pooler_config: dict[str, Any] = {}  # how, in vLLM's names; it holds against the model's files
    device: str = "auto"  # auto, cpu, cuda
    dtype: str = "auto"  # auto, bfloat16, float16, float32
    quantization: str | None = None  # the quant_method that config.json must have, or that loading makes
    cpu_weights: str = "auto"  # on a CPU: auto = in dtype, int8, int4
    cpu_activations: str = "auto"  # on a CPU, with quantised weights: auto = 8 bits, float
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    block_size: int = 16
    num_blocks: int | None = None
    kv_cache_dtype: str = "auto"  # auto, fp8, fp8_e4m3
    gpu_memory_utilization: float = 0.92
    kv_cache_memory_bytes: int | None = None
    enable_prefix_caching: bool = True
    state_checkpoints: int | None = None
    scheduling_policy: str = "fcfs"  # fcfs, priority
    seed: int | None = None  # None = different at every boot
    num_threads: int | None = None
    warmup: str = "none"  # none, eager, full
    enforce_eager: bool = False  # on a GPU: record no steps as graphs
    step_timeout: float = 0.0  # seconds until a step that does not return ends the process; 0 = never
    lean_torch: bool = True  # False: with all of torch, also where the import was begun without some of it
    log_level: str = "info"  # debug, info, warning, error
    log_format: str = "text"  # text, json
    boot_origin: float | None = None  # the worker's start on the clock of ember.boot.now()


class Prompt(Struct, frozen=True, omit_defaults=True):
    """The tokens of a request. Its outputs come back under `request_id`, which is unique for a connection's life."""

    request_id: int
    prompt_token_ids: list[int]


class Request(Prompt, frozen=True, kw_only=True):
    """What every request has, whatever it asks of the model. Each request has one class below."""

    adapter: str | None = None  # the LoRA adapter to run with; None = the base model
    cache_salt: str | None = None  # requests with different salts share no cached prefix
    priority: int = 0  # lower first, where the policy is `priority`


class Generate(Request, tag="generate", frozen=True):
    """Continue the prompt. The outputs are the tokens of `sampling.n` samples."""

    sampling: SamplingParams


class Pool(Request, tag="pool", frozen=True):
    """Run the prompt through the model once and pool its hidden states. There is one output, whose `pooled` has the
    values."""

    task: PoolingTask
    token_type_ids: list[int] = []  # the segment of each token of a pair of texts; empty = all 0
    num_instruction_tokens: int = 0  # the first tokens, which are not pooled where `Pooling.includes_prompt` is False
    # Only so many values of the embedding, which is normalised after it is cut. The front checks them (`Pooling`).
    dimensions: int | None = None
    use_activation: bool | None = None  # embed: normalise; classify: softmax or sigmoid; None = as the model says


class Abort(Struct, tag="abort", frozen=True, omit_defaults=True):
    """Stop a request, or one sample of it, and free its pages. No more outputs of it follow."""

    request_id: int
    index: int | None = None  # None = all n samples


class GetStats(Struct, tag="get_stats", frozen=True):
    """Ask for one `Stats`."""


class Pause(Struct, tag="pause", frozen=True):
    """Run no steps, or run them again. Requests keep their places and pages meanwhile."""

    is_paused: bool


class ResetPrefixCache(Struct, tag="reset_prefix_cache", frozen=True):
    """Forget what the prefix cache has. Running requests keep their pages."""


class EndTokens(Struct, tag="end_tokens", frozen=True):
    """The tokenizer's end tokens, which end an answer beside those of the model's configuration (`Ready`)."""

    token_ids: list[int]


class Shutdown(Struct, tag="shutdown", frozen=True):
    """End the process at once."""


FrontMessage = Configure | EndTokens | Generate | Pool | Abort | GetStats | Pause | ResetPrefixCache | Shutdown

# ---------------------------------------------------------------------------------------------- engine -> front


class Located(Struct, tag="located", frozen=True):
    """Sent before the weights are read, so that the front can load the tokenizer meanwhile."""

    model_dir: str  # or a GGUF file
    tokenizer_dir: str


class Notice(Struct, tag="notice", frozen=True):
    """One line for the worker's log, such as the progress of a download."""

    message: str
    level: str = "info"  # or warning


class Pooling(Struct, frozen=True, omit_defaults=True):
    """What a model of pooling tasks makes of a text."""

    dimensions: int  # of an embedding where a request does not say, or of the hidden states that a head classifies
    most_dimensions: int  # of an embedding that is not cut
    is_matryoshka: bool = False  # whether a request may ask for fewer dimensions
    matryoshka_dimensions: list[int] = []  # which numbers of them; empty = any
    labels: list[str] = []  # of the classes in their order; empty without a head that classifies
    activation: str = "none"  # of an output where a request does not say: none, normalize, softmax, sigmoid
    has_token_types: bool = False  # whether the model tells the segments of a pair apart
    includes_prompt: bool = True  # whether the tokens of an instruction before a text are pooled with it


class Ready(Struct, tag="ready", frozen=True):
    """Sent once, when the engine can serve. It describes the engine to the front."""

    architecture: str
    device: str
    dtype: str
    vocab_size: int  # rows of the logits; the tokenizer's own size may be smaller
    max_model_len: int
    block_size: int
    num_blocks: int
    max_num_seqs: int
    max_num_batched_tokens: int
    eos_token_ids: list[int]
    num_parameters: int
    warnings: list[str]
    boot_phases: list[dict[str, Any]]
    weights: str = "auto"  # of matrices on a CPU: auto = in dtype, int8, int4
    tasks: tuple[Task, ...] = ("generate",)  # what the model can do; a request for another task is refused
    operators: str = ""  # which operators compute the model, and why: "native (the C library for CPUs, bfloat16)"
    pooling: Pooling | None = None  # None = the model only generates


class Phases(Struct, tag="phases", frozen=True):
    """Phases of the boot timeline that follow `Ready`: the first step."""

    phases: list[dict[str, Any]]


class TokenLogprobs(Struct, array_like=True, frozen=True):
    """Log probabilities at one position, of the raw distribution (before penalties and temperature)."""

    token_id: int
    logprob: float
    rank: int  # 1 = most likely
    top_ids: list[int]
    top_logprobs: list[float]
    asked_ids: list[int] = []  # those of `SamplingParams.logprob_token_ids`
    asked_logprobs: list[float] = []


class Pooled(Struct, array_like=True, frozen=True):
    """The values that a `Pool` request asked for."""

    data: bytes  # float32, little-endian, row after row
    shape: list[int]  # [dimensions], [classes], or [tokens, dimensions or classes] for a task of every token


class SequenceOutput(Struct, array_like=True, frozen=True):
    """The output of one step for one sample of one request."""

    request_id: int
    index: int
    token_ids: list[int]
    finish_reason: str | None = None  # stop, length, abort, error
    stop_reason: int | str | None = None  # the token id that ended it, with finish_reason stop
    logprobs: list[TokenLogprobs] | None = None  # one per token id
    num_cached_tokens: int = 0  # of the prompt, taken from the prefix cache
    prompt_logprobs: list[TokenLogprobs | None] | None = None  # once, with sample 0; the first position is None
    error: str | None = None  # with finish_reason error
    error_param: str | None = None  # with an error that is the request's own: the field at fault (a 400)
    queue_seconds: float = 0.0  # with the first tokens: from its arrival in the engine to its first step
    pooled: Pooled | None = None  # of a `Pool` request; it has no tokens, and its finish_reason is stop
    num_preemptions: int = 0  # of the sample up to now


class Stats(Struct, tag="stats", frozen=True):
    """The engine's statistics. Counters count from the start of the engine."""

    num_running: int
    num_waiting: int
    num_blocks: int
    num_free_blocks: int
    prompt_tokens: int
    generation_tokens: int
    prefix_cache_queries: int
    prefix_cache_hits: int
    num_preemptions: int
    num_steps: int
    step_tokens: int = 0  # of all steps: prompt tokens that were computed, and generated tokens
    step_token_counts: list[int] = []  # steps by these tokens, in the buckets of `histogram.STEP_TOKENS`


class Outputs(Struct, tag="outputs", frozen=True):
    """The outputs of one step."""

    outputs: list[SequenceOutput]


class Failed(Struct, tag="failed", frozen=True):
    """The engine has failed, and its process exits after this message. `during` is `boot` or `run`."""

    message: str  # one line for the person who has to act
    during: str


EngineMessage = Located | Notice | Ready | Phases | Outputs | Stats | Failed

_encoder = msgspec.msgpack.Encoder()
_front_decoder = msgspec.msgpack.Decoder(list[FrontMessage])
_engine_decoder = msgspec.msgpack.Decoder(EngineMessage)


def encode_front(message: FrontMessage) -> bytes:
    """Encode one message, which `frame_front` puts into a frame. Raises ValueError for a value that cannot be encoded:
    text that UTF-8 cannot encode, or a number beyond 64 bits."""
    try:
        return _encoder.encode(message)
    except (UnicodeEncodeError, OverflowError) as error:
        raise ValueError(f"{type(message).__name__}: {error}") from None


def frame_front(encoded: list[bytes]) -> bytes:
    """One frame: a list of encoded messages."""
    count = len(encoded)
    head = bytes([0x90 | count]) if count < 16 else b"\xdd" + struct.pack(">I", count)  # msgpack's array headers
    return frame(head + b"".join(encoded))


def encode_engine(message: EngineMessage) -> bytes:
    return frame(_encoder.encode(message))


def decode_front(payload: bytes | memoryview) -> list[FrontMessage]:
    return _front_decoder.decode(payload)


def decode_engine(payload: bytes | memoryview) -> EngineMessage:
    return _engine_decoder.decode(payload)


def frame(payload: bytes) -> bytes:
    """The payload with its length before it. Raises ValueError when it is longer than `MAX_FRAME_BYTES`."""
    if len(payload) > MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {len(payload)} bytes, at most {MAX_FRAME_BYTES} are allowed")
    return _LENGTH.pack(len(payload)) + payload


class FrameBuffer:
    """Splits a byte stream into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Add bytes that arrived. Returns the payloads that are complete. Raises ValueError when a length is beyond
        `MAX_FRAME_BYTES`."""
        self._buffer += data
        frames = []
        position = 0
        while len(self._buffer) - position >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer, position)
            if length > MAX_FRAME_BYTES:
                raise ValueError(f"frame of {length} bytes on the wire, at most {MAX_FRAME_BYTES} are allowed")
            end = position + _LENGTH.size + length
            if len(self._buffer) < end:
                break
            frames.append(bytes(self._buffer[position + _LENGTH.size : end]))
            position = end
        del self._buffer[:position]
        return frames


def recv_frame(sock: socket.socket) -> bytes | None:
    """Read one frame, blocking. Returns None at the end of the stream."""
    header = _recv_exactly(sock, _LENGTH.size)
    if header is None:
        return None
    (length,) = _LENGTH.unpack(header)
    if length > MAX_FRAME_BYTES:
        raise ValueError(f"frame of {length} bytes on the wire, at most {MAX_FRAME_BYTES} are allowed")
    return _recv_exactly(sock, length)


def _recv_exactly(sock: socket.socket, size: int) -> bytes | None:
    data = bytearray()
    while len(data) < size:
        chunk = sock.recv(min(size - len(data), 1 << 20))
        if not chunk:
            return None
        data += chunk
    return bytes(data)
