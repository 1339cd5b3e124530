"""`LLM`: a model in a Python program, with the methods of vLLM's class of this name."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from ember.front.api.services import Services
from ember.front.errors import ApiError
from ember.front.offline import pooling
from ember.front.offline.checks import check_argument, check_count, check_params
from ember.front.offline.generation import beam_output, complete, converse, request_output
from ember.front.offline.outputs import (
    BeamSearchOutput,
    ClassificationOutput,
    ClassificationRequestOutput,
    EmbeddingOutput,
    EmbeddingRequestOutput,
    PoolingOutput,
    PoolingRequestOutput,
    RequestOutput,
    ScoringOutput,
    ScoringRequestOutput,
)
from ember.front.offline.params import BeamSearchParams, PoolingParams, SamplingParams
from ember.front.offline.pooling import Chunk
from ember.front.offline.prompts import PromptType, read_prompts
from ember.front.offline.session import Progress, Session
from ember.front.offline.tokenizer import OfflineTokenizer
from ember.front.text.template_choice import choose_template
from ember.front.text.template_error import TemplateError
from ember.settings import load_arguments
from ember.wire import PoolingTask

log = logging.getLogger(__name__)

Output = TypeVar("Output")
Tqdm = bool | Callable[..., Any]
Messages = Sequence[Mapping[str, Any]]
_FIRST_TASKS: tuple[PoolingTask, ...] = ("token_embed", "token_classify", "embed", "classify", "score")


class LLM:
    """A model with an engine of its own, a child process that ends with `shutdown()`, with the block of a `with`, and
    with the program, however that ends.

    `arguments` are vLLM's engine arguments (`dtype`, `max_model_len`, `gpu_memory_utilization`, ...); each is a
    setting of Ember. The environment holds where an argument is not given. Methods may be called from any thread, also
    from one whose event loop is running.

    Raises TypeError for an unknown argument and where neither `model` nor MODEL_NAME names a model, ValueError for a
    wrong value, RuntimeError when the model cannot be loaded.
    """

    def __init__(self, model: str | os.PathLike[str] | None = None, **arguments: Any) -> None:
        if isinstance(model, os.PathLike):
            model = os.fspath(model)
        if type(arguments.get("dtype")).__module__ == "torch":  # which is not imported for it
            arguments["dtype"] = str(arguments["dtype"]).removeprefix("torch.")
        if model is None and not os.environ.get("MODEL_NAME"):
            raise TypeError("LLM() needs a model: give `model`, or set MODEL_NAME.")
        if "seed" not in arguments and not os.environ.get("SEED"):
            arguments["seed"] = 0  # the same program gives the same outputs
        settings, without_effect = load_arguments({"model": model, **arguments})
        for line in without_effect:
            log.warning("%s", line)
        self._session = Session(settings)
        self._numbers = itertools.count()
        self._templates: tuple[str, Services] | None = None
        self._finalizer = weakref.finalize(self, self._session.close)

    def shutdown(self) -> None:
        """End the engine and free its memory. Calls that still run fail."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()

    @property
    def _services(self) -> Services:
        return self._session.services

    @property
    def tasks(self) -> tuple[str, ...]:
        """What the model can do: generate, or pooling tasks."""
        return self._session.info.tasks

    def get_default_sampling_params(self) -> SamplingParams:
        """The defaults of the model's generation_config.json."""
        known = {field.name for field in dataclasses.fields(SamplingParams)}
        defaults = dict(self._services.generation_defaults)
        if (longest := defaults.pop("max_new_tokens", None)) is not None:
            defaults["max_tokens"] = longest
        return SamplingParams(
            **{name: value for name, value in defaults.items() if name in known and value is not None}
        )

    def get_tokenizer(self) -> OfflineTokenizer:
        """The model's tokenizer and chat template."""
        return OfflineTokenizer(self._services, self._session.wait, self._with_template)

    def reset_prefix_cache(self) -> bool:
        """Empty the prefix cache. Prompts that run keep their pages. Raises RuntimeError while the engine is not
        ready."""
        try:
            self._session.wait(self._services.engine.reset_prefix_cache())
        except ApiError as error:
            raise RuntimeError(error.message) from None
        return True

    # ------------------------------------------------------------------------------------------------------ generation

    def generate(
        self,
        prompts: PromptType | Sequence[PromptType],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: Tqdm = True,
        priority: int | Sequence[int] | None = None,
        lora_request: None = None,
    ) -> list[RequestOutput]:
        """Continue each prompt; `priority` is that of all, or one of each. The results are in the order of the prompts.
        Raises PromptError and RuntimeError."""
        _refuse_adapter(lora_request)
        given = read_prompts(prompts)
        each = [priority] * len(given) if isinstance(priority, int) else priority
        work = self._generating(complete, self._services, sampling_params, len(given), each, {}, is_chat=False)
        return self._session.run(given, work, Progress(len(given), use_tqdm, "Processed prompts"))

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: Tqdm = True,
        lora_request: None = None,
        chat_template: str | None = None,
        chat_template_content_format: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: list[dict[str, Any]] | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answer each conversation: a list of messages, or a list of those. Raises PromptError and RuntimeError."""
        _refuse_adapter(lora_request)
        given = _conversations(messages)
        if chat_template is not None:
            check_argument("chat_template", chat_template, isinstance(chat_template, str), "a text")
        fields = {
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
            "tools": tools,
            "chat_template_kwargs": chat_template_kwargs,
        }
        services = self._services
        if chat_template is not None:
            services = self._with_template(chat_template)
        formats = (None, "auto", "string", "openai")
        if chat_template_content_format not in formats:
            allowed = ", ".join(map(repr, formats[1:]))
            raise ValueError(f"chat_template_content_format must be {allowed}, got {chat_template_content_format!r}.")
        if chat_template_content_format not in (None, "auto"):
            changed = services.settings.model_copy(
                update={"chat_template_content_format": chat_template_content_format}
            )
            services = dataclasses.replace(services, settings=changed)
        work = self._generating(converse, services, sampling_params, len(given), None, fields, is_chat=True)
        return self._session.run(given, work, Progress(len(given), use_tqdm, "Processed prompts"))

    def beam_search(
        self,
        prompts: PromptType | Sequence[PromptType],
        params: BeamSearchParams,
        lora_request: None = None,
        use_tqdm: Tqdm = False,
        concurrency_limit: int | None = None,
    ) -> list[BeamSearchOutput]:
        """Search for the likeliest continuations of each prompt. Raises PromptError and RuntimeError."""
        _refuse_adapter(lora_request)
        check_argument("params", params, isinstance(params, BeamSearchParams), "BeamSearchParams")
        if concurrency_limit is not None:
            check_count("concurrency_limit", concurrency_limit)
        given = read_prompts(prompts)
        fields = params.body()

        async def work(index: int, prompt: Any) -> BeamSearchOutput:
            call, _ = await complete(self._services, self._name(), prompt, fields)
            return await beam_output(call)

        window = concurrency_limit or max(1, self._session.window // params.beam_width)
        return self._session.run(given, work, Progress(len(given), use_tqdm, "Beam search"), window)

    def _generating(
        self,
        opened: Any,
        services: Services,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        count: int,
        priority: Sequence[int] | None,
        fields: dict[str, Any],
        *,
        is_chat: bool,
    ) -> Any:
        """The work of `Session.run` for prompts or chats. Raises TypeError, and ValueError for lists of another
        length."""
        check_params("sampling_params", sampling_params, SamplingParams, many=True)
        if priority is not None:
            check_argument("priority", priority, isinstance(priority, Sequence), "a whole number, or a list of them")
            for each in priority:
                check_argument("each of priority", each, type(each) is int, "a whole number")
        for name, value in (("sampling_params", sampling_params), ("priority", priority)):
            if isinstance(value, Sequence) and len(value) != count:
                raise ValueError(f"{name} must have one entry for each of the {count} prompts, got {len(value)}.")
        longest = self._session.info.max_model_len
        bodies: dict[int, dict[str, Any]] = {}  # one for each object of parameters

        def body_of(params: SamplingParams | None) -> dict[str, Any]:
            if params is None:  # the deployment's defaults hold
                return {**fields, "max_tokens": services.generation_defaults.get("max_new_tokens") or 16}
            if id(params) not in bodies:
                bodies[id(params)] = {**fields, **(params.chat_body(longest) if is_chat else params.body(longest))}
            return bodies[id(params)]

        async def work(index: int, prompt: Any) -> RequestOutput:
            params = sampling_params[index] if isinstance(sampling_params, Sequence) else sampling_params
            body = body_of(params)
            if priority is not None:
                body = {**body, "priority": priority[index]}
            call, text = await opened(services, self._name(), prompt, body)
            if params is None:
                return await request_output(call, text, None, None, True)
            return await request_output(call, text, params.logprobs, params.prompt_logprobs, params.detokenize)

        return work

    def _name(self) -> str:
        return str(next(self._numbers))

    def _with_template(self, source: str) -> Services:
        """The services with another chat template: Jinja text, the path of a file with it, or the name of one of the
        model's. Raises ValueError."""
        services = self._services
        if self._templates is not None and self._templates[0] == source:
            return self._templates[1]
        own = services.tokenizer.chat_template
        if isinstance(own, dict) and source in own:
            source = own[source]
        try:
            template, _ = choose_template(own, services.tokenizer.special_tokens, source)
        except TemplateError as error:
            raise ValueError(str(error).replace("CUSTOM_CHAT_TEMPLATE", "chat_template")) from None
        settings = services.settings.model_copy(update={"custom_chat_template": source})
        changed = dataclasses.replace(services, template=template, settings=settings)
        self._templates = (source, changed)
        return changed

    # --------------------------------------------------------------------------------------------------------- pooling

    def embed(
        self,
        prompts: PromptType | Sequence[PromptType],
        *,
        use_tqdm: Tqdm = True,
        pooling_params: PoolingParams | Sequence[PoolingParams] | None = None,
        lora_request: None = None,
    ) -> list[EmbeddingRequestOutput]:
        """The embedding of each prompt. Raises PromptError and RuntimeError."""
        _refuse_adapter(lora_request)
        return self._pooled(prompts, "embed", pooling_params, use_tqdm, EmbeddingRequestOutput, EmbeddingOutput)

    def classify(
        self,
        prompts: PromptType | Sequence[PromptType],
        *,
        use_tqdm: Tqdm = True,
        pooling_params: PoolingParams | Sequence[PoolingParams] | None = None,
        lora_request: None = None,
    ) -> list[ClassificationRequestOutput]:
        """The probabilities of the classes of each prompt. Raises PromptError and RuntimeError."""
        _refuse_adapter(lora_request)
        return self._pooled(
            prompts, "classify", pooling_params, use_tqdm, ClassificationRequestOutput, ClassificationOutput
        )

    def encode(
        self,
        prompts: PromptType | Sequence[PromptType],
        pooling_params: PoolingParams | Sequence[PoolingParams] | None = None,
        *,
        pooling_task: str | None = None,
        use_tqdm: Tqdm = True,
        lora_request: None = None,
    ) -> list[PoolingRequestOutput[PoolingOutput]]:
        """What a pooling task makes of each prompt: without a task, the values of every token where the model has them.
        Raises PromptError and RuntimeError."""
        _refuse_adapter(lora_request)
        check_params("pooling_params", pooling_params, PoolingParams, many=True)
        given = pooling_params if isinstance(pooling_params, Sequence) else [pooling_params]
        task = pooling_task or next((each.task for each in given if each is not None and each.task), None)
        if task is None:
            task = next((name for name in _FIRST_TASKS if name in self.tasks), "embed")
        return self._pooled(prompts, task, pooling_params, use_tqdm, PoolingRequestOutput, PoolingOutput)

    def score(
        self,
        data_1: str | Sequence[str],
        data_2: str | Sequence[str],
        *,
        use_tqdm: Tqdm = True,
        pooling_params: PoolingParams | None = None,
        lora_request: None = None,
    ) -> list[ScoringRequestOutput]:
        """How well pairs of texts fit each other: one text with each of many, or two lists of one length. Raises
        ValueError, PromptError and RuntimeError."""
        _refuse_adapter(lora_request)
        first, second = _texts("data_1", data_1), _texts("data_2", data_2)
        if not first or not second or (len(first) > 1 and len(first) != len(second)):
            message = f"got {len(first)} and {len(second)} texts"
            raise ValueError(f"data_1 and data_2 must have 1:1, 1:N or N:N texts; {message}.")
        check_params("pooling_params", pooling_params, PoolingParams)
        names = [self._name() for _ in second]
        pairs: Sequence[Any] = second if len(first) == 1 else list(zip(first, second, strict=True))

        async def scored(chunk: Chunk) -> list[ScoringRequestOutput]:
            queries, documents = (first, chunk.items) if len(first) == 1 else zip(*chunk.items, strict=True)
            found = await pooling.score(self._services, queries, documents, chunk.fields)
            return [
                ScoringRequestOutput(name, ScoringOutput(value), text.token_ids)
                for name, (text, value) in zip(names[chunk.start :], found, strict=False)
            ]

        chunks = pooling.chunks(pairs, pooling.fields_of_each(pooling_params, len(pairs), "score"))
        return pooling.run_chunks(self._session, list(chunks), scored, use_tqdm, "Scored")

    def _pooled(
        self,
        prompts: Any,
        task: str,
        params: PoolingParams | Sequence[PoolingParams] | None,
        use_tqdm: Tqdm,
        whole: Callable[[str, Any, list[int]], Output],
        part: Callable[[Any], Any],
    ) -> list[Output]:
        """The output of each prompt: `whole` of a request id, the values as a `part`, and the token ids."""
        check_params("pooling_params", params, PoolingParams, many=True)
        given = read_prompts(prompts)
        texts = [prompt.content for prompt in given]
        names = [self._name() for _ in texts]

        async def pooled(chunk: Chunk) -> list[Output]:
            found = await pooling.pool(self._services, chunk.items, task, chunk.fields)
            return [
                whole(name, part(pooling.numbers(values)), text.token_ids)
                for name, (text, values) in zip(names[chunk.start :], found, strict=False)
            ]

        fields = pooling.fields_of_each(params, len(texts), task)
        chunks = pooling.chunks(texts, [{**each, **prompt.fields} for each, prompt in zip(fields, given, strict=True)])
        return pooling.run_chunks(self._session, list(chunks), pooled, use_tqdm, "Pooled")


def _conversations(messages: Any) -> list[Any]:
    """Each conversation of one or several. Raises TypeError."""
    is_list = isinstance(messages, Sequence) and not isinstance(messages, str | bytes)
    check_argument("messages", messages, is_list, "a list of messages, or a list of such lists")
    return [messages] if messages and isinstance(messages[0], Mapping) else list(messages)


def _texts(name: str, given: Any) -> list[str]:
    """Raises TypeError."""
    found = [given] if isinstance(given, str) else given
    check_argument(
        name, given, isinstance(found, Sequence) and not isinstance(found, bytes), "a text or a list of them"
    )
    for each in found:
        check_argument(f"each of {name}", each, isinstance(each, str), "a text")
    return list(found)


def _refuse_adapter(lora_request: Any) -> None:
    if lora_request is not None:
        raise ValueError("lora_request is not supported by this version of Ember; leave it out")
