"""A tiny deployment: a real tokenizer and template built on the spot, and an engine that replays a script."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from ember import wire
from ember.boot import Timeline
from ember.front.api.exchange import Event, EventStream, Request, Response
from ember.front.api.openai_forms import openai_error
from ember.front.api.routes import ROUTER
from ember.front.api.services import Services
from ember.front.errors import ApiError
from ember.front.link.control import Control
from ember.front.link.engine import EngineError
from ember.front.link.gate import Gate
from ember.front.link.pooling import PoolOptions, PoolText
from ember.front.text.template import ChatTemplate
from ember.front.text.tokenizer import Tokenizer
from ember.settings import Settings

BOS, EOS, USER, ASSISTANT, SYSTEM = "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>"
SPECIAL = [BOS, EOS, USER, ASSISTANT, SYSTEM]
MERGES = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("Ġ", "w")]
TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'forbidden' %}"
    "{{ raise_exception('Only user and assistant roles are supported!') }}"
    "{% endif %}"
    "<|{{ message.role }}|>{{ message.content }}"
    "{% if message.reasoning_content %}[{{ message.reasoning_content }}]{% endif %}"
    "{% for call in message.tool_calls or [] %}({{ call.function.name }} {{ call.function.arguments | tojson }})"
    "{% endfor %}"
    "{% endfor %}"
    "{% if tools %}<tools>{{ tools | tojson }}</tools>{% endif %}"
    "{% if documents %}<docs>{{ documents | tojson }}</docs>{% endif %}"
    "{% if enable_thinking is defined %}<thinking {{ enable_thinking }}>{% endif %}"
    "{% if reasoning_effort is defined %}<effort {{ reasoning_effort }}>{% endif %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MAX_MODEL_LEN = 256
VOCAB_SIZE = 300  # more rows than the tokenizer has tokens


def make_tokenizer(directory: Path) -> Tokenizer:
    """Byte level, with the merges above; encoding adds <s> unless told not to."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = alphabet + [left + right for left, right in MERGES]
    vocabulary = {word: token_id for token_id, word in enumerate(words)}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=MERGES))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIAL)
    bos_id = backend.token_to_id(BOS)
    backend.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, bos_id)])
    backend.save(str(directory / "tokenizer.json"))
    config = {"bos_token": BOS, "eos_token": EOS, "chat_template": TEMPLATE}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return Tokenizer.load(directory)


def ready(tokenizer: Tokenizer) -> wire.Ready:
    eos = tokenizer.token_id(EOS)
    return wire.Ready(
        architecture="TinyForCausalLM",
        device="cpu",
        dtype="float32",
        vocab_size=VOCAB_SIZE,
        max_model_len=MAX_MODEL_LEN,
        block_size=16,
        num_blocks=64,
        max_num_seqs=8,
        max_num_batched_tokens=256,
        eos_token_ids=[] if eos is None else [eos],
        num_parameters=1,
        warnings=[],
        boot_phases=[],
    )


Step = list[wire.SequenceOutput] | ApiError
Script = Callable[[list[int], wire.SamplingParams], Sequence[Step]]


class FakeGeneration:
    """Replays the steps of a script, one list of outputs for each `anext`, as the real one does."""

    def __init__(self, steps: Sequence[Step], n: int, delay: float) -> None:
        self.steps = list(steps)
        self.unfinished = set(range(n))
        self.aborted: list[int | None] = []
        self.is_closed = False
        self.delay = delay

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.is_closed = True
        if self.unfinished:
            self.abort()

    def __aiter__(self) -> AsyncIterator[list[wire.SequenceOutput]]:
        return self

    async def __anext__(self) -> list[wire.SequenceOutput]:
        while self.unfinished and self.steps:
            await asyncio.sleep(self.delay)
            step = self.steps.pop(0)
            if isinstance(step, ApiError):
                raise step
            outputs = [output for output in step if output.index in self.unfinished]
            self.unfinished -= {output.index for output in outputs if output.finish_reason is not None}
            if outputs:
                return outputs
        raise StopAsyncIteration

    def abort(self, index: int | None = None) -> None:
        self.aborted.append(index)
        self.unfinished -= self.unfinished if index is None else {index}


class FakeEngine:
    """`script(prompt, sampling)` gives the steps. `state` is ready, loading or dead."""

    def __init__(self, info: wire.Ready, script: Script) -> None:
        self._info = info
        self.script = script
        self.state = "ready"
        self.delay = 0.0
        self.calls: list[tuple[list[int], wire.SamplingParams, int, str | None]] = []
        self.generations: list[FakeGeneration] = []
        self.pooled: list[tuple[list[PoolText], PoolOptions]] = []
        self.gate = Gate()
        self.control = Control(self)
        self.num_others = 0  # requests that run, of which the api knows nothing
        self.model_dir = "/no/such/model"
        self.told: list[str] = []  # by the operator

    @property
    def info(self) -> wire.Ready:
        if self.state != "ready":
            raise ApiError(503, "The model is being loaded; try again in a moment.")
        return self._info

    @property
    def is_ready(self) -> bool:
        return self.state == "ready" and self.gate.is_open

    @property
    def is_busy(self) -> bool:
        return bool(self.num_others or self.gate.inside)

    @property
    def tasks(self) -> Sequence[str]:
        return self._info.tasks

    @property
    def is_dead(self) -> bool:
        return self.state == "dead"

    async def wait_ready(self) -> wire.Ready:
        await self.gate.wait()
        while self.state == "loading":
            await asyncio.sleep(0.001)
        if self.state == "dead":
            raise EngineError("the GPU is too small for this model")
        return self._info

    def generate(
        self,
        prompt_token_ids: list[int],
        sampling: wire.SamplingParams,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
        adapter: str | None = None,
        is_step: bool = False,
    ) -> Any:
        if not is_step:
            self.gate.check()
        self.calls.append((prompt_token_ids, sampling, priority, cache_salt))
        generation = FakeGeneration(self.script(prompt_token_ids, sampling), sampling.n, self.delay)
        self.generations.append(generation)
        return generation

    async def pool_many(
        self, texts: Sequence[PoolText], options: PoolOptions, *, is_step: bool = False
    ) -> list[wire.SequenceOutput]:
        if not is_step:
            self.gate.check()
        self.pooled.append((list(texts), options))
        await asyncio.sleep(self.delay)
        return [
            wire.SequenceOutput(1, 0, [], "stop", num_cached_tokens=1, pooled=self.pool(text, options))
            for text in texts
        ]

    def pool(self, text: PoolText, options: PoolOptions) -> wire.Pooled:
        """Values that depend on the text: the first is the number of its tokens, at least for embeddings."""
        pooling = self.info.pooling
        assert pooling is not None
        width = {"classify": len(pooling.labels), "token_classify": len(pooling.labels), "score": 1}.get(options.task)
        width = width or options.dimensions or pooling.dimensions
        values = [float(len(text.token_ids)), *(float(token_id % 7) - 3 for token_id in text.token_ids)]
        row = (values * width)[:width]
        rows = len(text.token_ids) if options.task.startswith("token_") else 1
        shape = [width] if rows == 1 and not options.task.startswith("token_") else [rows, width]
        return wire.Pooled(struct.pack(f"<{rows * width}f", *row * rows), shape)

    def abort_all(self) -> None:
        self.told.append("abort")
        for entrant in list(self.gate.inside):
            entrant.abort()
        for generation in self.generations:
            generation.abort()

    def pause_steps(self, is_paused: bool) -> None:
        self.told.append("pause steps" if is_paused else "go on")

    async def reset_prefix_cache(self) -> None:
        self.told.append("reset")

    async def stop_process(self) -> None:
        self.told.append("stop")

    async def start_process(self) -> None:
        self.told.append("start")
        if self.state == "dead":
            raise EngineError("the GPU is gone")

    async def stats(self) -> wire.Stats:
        raise NotImplementedError

    @property
    def prompt(self) -> list[int]:
        return self.calls[-1][0]

    @property
    def sampling(self) -> wire.SamplingParams:
        return self.calls[-1][1]


def logprob_of(token_id: int, num_top: int) -> wire.TokenLogprobs:
    """The sampled token is second; the others are its neighbours; the last alternative is impossible."""
    count = 4 if num_top == -1 else num_top
    top = [((token_id + shift) % VOCAB_SIZE, value) for shift, value in ((1, -0.5), (0, -1.0), (2, -2.0), (3, -1e400))]
    kept = top[:count]
    return wire.TokenLogprobs(token_id, -1.0, 2, [pair[0] for pair in kept], [pair[1] for pair in kept])


def say(tokenizer: Tokenizer, text: str | Sequence[int], per_step: int = 1) -> Script:
    """Every sample says the text and then EOS, `per_step` tokens at a time, or less if max_tokens comes first.

    The first sample brings the log probabilities of the prompt, as in the engine.
    """
    said = tokenizer.encode(text, add_special_tokens=False) if isinstance(text, str) else list(text)

    def script(prompt: list[int], sampling: wire.SamplingParams) -> list[Step]:
        token_ids = said if sampling.ignore_eos else [*said, tokenizer.token_id(EOS) or 0]
        reason, stop_reason = "stop", None
        for position, token_id in enumerate(token_ids):
            if token_id in sampling.stop_token_ids:
                token_ids, stop_reason = token_ids[: position + 1], token_id
                break
        if len(token_ids) > sampling.max_tokens:
            token_ids, reason, stop_reason = token_ids[: sampling.max_tokens], "length", None
        steps: list[Step] = []
        for start in range(0, len(token_ids) or 1, per_step):
            new = token_ids[start : start + per_step]
            is_last = start + per_step >= len(token_ids)
            outputs = [
                wire.SequenceOutput(
                    request_id=1,
                    index=index,
                    token_ids=new,
                    finish_reason=reason if is_last else None,
                    stop_reason=stop_reason if is_last else None,
                    logprobs=None if sampling.logprobs is None else [_logprob(i, sampling) for i in new],
                    num_cached_tokens=3 if start == 0 else 0,
                    prompt_logprobs=_prompt_logprobs(prompt, sampling) if start == index == 0 else None,
                )
                for index in range(sampling.n)
            ]
            steps.append(outputs)
        return steps

    return script


def _logprob(token_id: int, sampling: wire.SamplingParams) -> wire.TokenLogprobs:
    """With the tokens that the request names, each less likely than the one before."""
    asked = sampling.logprob_token_ids
    values = [-0.5 * (1 + place) for place in range(len(asked))]
    found = logprob_of(token_id, sampling.logprobs or 0)
    return msgspec.structs.replace(found, asked_ids=asked, asked_logprobs=values)


def _prompt_logprobs(prompt: list[int], sampling: wire.SamplingParams) -> list[wire.TokenLogprobs | None] | None:
    if sampling.prompt_logprobs is None:
        return None
    return [None, *(logprob_of(token_id, sampling.prompt_logprobs) for token_id in prompt[1:])]


class Deployment:
    """Services around the fakes, and short ways to ask them."""

    def __init__(self, tokenizer: Tokenizer, **settings: Any) -> None:
        self.tokenizer = tokenizer
        self.engine = FakeEngine(ready(tokenizer), say(tokenizer, "hello world"))
        self.services = Services(
            settings=Settings(**{"model_name": "org/tiny", **settings}),
            engine=self.engine,
            tokenizer=tokenizer,
            template=ChatTemplate.for_tokenizer(tokenizer, None),
            model_dir="/models/tiny",
            generation_defaults={},
            created=1700000000,
            timeline=Timeline("front", 0.0),
        )

    async def ready(self) -> Services:
        """The services: a deployment stands for the worker of `http.app.make_app`."""
        return self.services

    def says(self, text: str | Sequence[int], per_step: int = 1) -> None:
        self.engine.script = say(self.tokenizer, text, per_step)

    def pools(self, *tasks: Any, **pooling: Any) -> None:
        """Serve a model of these tasks from now on, with 8 dimensions and 2 classes."""
        most = pooling.get("dimensions", 8)
        described = wire.Pooling(**{"dimensions": 8, "most_dimensions": most, "labels": ["bad", "good"], **pooling})
        self.engine._info = msgspec.structs.replace(self.engine._info, tasks=tasks, pooling=described)

    def use_template(self, source: str) -> None:
        self.services.template = ChatTemplate(source, self.tokenizer.special_tokens)

    @property
    def prompt_text(self) -> str:
        """The last prompt as the engine saw it, special tokens included."""
        return self.tokenizer.decode(self.engine.prompt, skip_special_tokens=False)

    async def dispatch(self, method: str, path: str, body: Any = None, **headers: str) -> Response | EventStream:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return await ROUTER.dispatch(self.services, Request(method, path, body, names))

    def request(self, method: str, path: str, body: Any = None, **headers: str) -> Response:
        answer = asyncio.run(self.dispatch(method, path, body, **headers))
        assert isinstance(answer, Response)
        return answer

    def chat(self, content: str = "hi", **fields: Any) -> Any:
        body = {"messages": [{"role": "user", "content": content}], **fields}
        return self.request("POST", "/v1/chat/completions", body).body

    def complete(self, prompt: Any = "hi", **fields: Any) -> Any:
        return self.request("POST", "/v1/completions", {"prompt": prompt, **fields}).body

    def events(self, path: str, body: Any, **headers: str) -> list[Event]:
        async def collect() -> list[Event]:
            answer = await self.dispatch("POST", path, body, **headers)
            assert isinstance(answer, EventStream)
            return [event async for event in answer.events]

        return asyncio.run(collect())

    def stream_chat(self, content: str = "hi", **fields: Any) -> list[Any]:
        body = {"messages": [{"role": "user", "content": content}], "stream": True, **fields}
        return parsed(self.events("/v1/chat/completions", body))

    def stream_completion(self, prompt: Any = "hi", **fields: Any) -> list[Any]:
        return parsed(self.events("/v1/completions", {"prompt": prompt, "stream": True, **fields}))


def parsed(events: Sequence[Event]) -> list[Any]:
    """The chunks of a stream of OpenAI's, whose events have no names."""
    for event in events:
        assert event.name is None and "\n" not in event.data
    return [json.loads(event.data) for event in events]


def refused(deployment: Deployment, path: str, body: Any) -> ApiError:
    """The error of a POST that must be refused before the engine hears of it."""
    with pytest.raises(ApiError) as caught:
        deployment.request("POST", path, body)
    assert not deployment.engine.calls, "nothing may reach the engine"
    error = caught.value
    assert openai_error(error) == {
        "error": {"message": error.message, "type": error.type, "param": error.param, "code": error.status}
    }
    return error
