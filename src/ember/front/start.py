"""The front's start-up, for the queue and for HTTP: the engine process, then tokenizer and template, then
`Services`."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import json
import logging
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from ember.boot import Timeline, now
from ember.front.link.spawn import spawn
from ember.interpreter import module_command
from ember.wire import Configure, Ready

if TYPE_CHECKING:
    from ember.front.api.services import Services
    from ember.front.link.client import EngineClient
    from ember.front.text.sentence_files import SentenceFiles
    from ember.front.text.template import ChatTemplate
    from ember.front.text.tokenizer import Tokenizer
    from ember.settings import Settings

T = TypeVar("T")

log = logging.getLogger(__name__)

# Interpreter switch interval: how long a thread that reads a large request delays the event loop at each wake-up. With
# Python's default of 5 ms, such a thread makes a stream of tokens several times as slow.
SWITCH_INTERVAL_S = 0.0005
PREPARE_AFTER_S = 10.0  # from the boot on, and again while requests run


def launch(settings: Settings, *, owns_process: bool = True) -> Worker:
    """Start the engine process at once. Returns a worker that continues the boot in an event loop. With `owns_process`
    false this process belongs to somebody else, whose settings of the interpreter stay as they are."""
    timeline = Timeline("front")
    engine = spawn()
    timeline.add("spawn", timeline.origin, engine.started)
    timeline.add("settings", engine.started, now())
    configure = configure_of(settings, timeline.origin)
    from ember.front.link.admission import Admission
    from ember.front.link.client import EngineClient

    admission = Admission(settings.max_num_queued_reqs, settings.max_num_queued_tokens)
    client = EngineClient(engine, configure, timeline, settings.engine_restarts, admission)
    return Worker(settings, client, timeline, owns_process)


def configure_of(settings: Settings, boot_origin: float | None = None) -> Configure:
    """The engine's part of the settings."""
    token = settings.hf_token
    return Configure(
        model=settings.model_name or "demo",
        revision=settings.model_revision,
        tokenizer=settings.tokenizer_name,
        tokenizer_revision=settings.tokenizer_revision,
        base_path=settings.base_path,
        download_dir=settings.download_dir,
        hf_token=token.get_secret_value() if token else None,
        load_format=settings.load_format,
        gguf_quantization=settings.hf_quantization,
        gguf_file=settings.hf_model_file,
        hf_overrides=settings.hf_overrides,
        model_impl=settings.model_impl,
        trust_remote_code=settings.trust_remote_code,
        runner=settings.tasks[0],
        convert=settings.tasks[1],
        pooler_config=settings.pooler_config,
        device=settings.device,
        dtype=settings.dtype,
        quantization=settings.quantization,
        cpu_weights=settings.cpu_weights,
        cpu_activations=settings.cpu_activations,
        max_model_len=settings.max_model_len,
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        block_size=settings.block_size,
        num_blocks=settings.num_gpu_blocks_override,
        kv_cache_dtype=settings.kv_cache_dtype,
        gpu_memory_utilization=settings.gpu_memory_utilization,
        kv_cache_memory_bytes=settings.kv_cache_memory_bytes,
        enable_prefix_caching=settings.enable_prefix_caching,
        state_checkpoints=settings.state_checkpoints,
        scheduling_policy=settings.scheduling_policy,
        seed=settings.seed,
        num_threads=settings.num_threads,
        warmup=settings.warmup,
        enforce_eager=settings.enforce_eager,
        step_timeout=settings.step_timeout,
        lean_torch=settings.lean_torch,
        log_level=settings.log_level,
        log_format=settings.log_format,
        boot_origin=boot_origin,
    )


def _pooling_texts(model_dir: Path) -> SentenceFiles:
    """What the model's files say about texts. It also imports the pooling routes, so that the first request need
    not."""
    import ember.front.api.pooling.cohere
    import ember.front.api.pooling.score  # noqa: F401
    from ember.front.text.sentence_files import read_sentence_files

    return read_sentence_files(model_dir)


def local_tokenizer(settings: Settings) -> str | None:
    """The directory or GGUF file of the tokenizer, if it is known without a search for the model: a path that exists.
    The engine's answer may still differ."""
    from ember.gguf.files import SUFFIX, first_part

    name = (settings.tokenizer_name or settings.model_name or "demo").strip()
    path = Path(name).expanduser()
    if name == "demo" or not name:
        return None
    if path.suffix.lower() == SUFFIX and path.is_file() and not settings.tokenizer_name:
        return str(first_part(path))
    return str(path) if (path / "tokenizer.json").is_file() else None


def _in_daemon_thread(function: Callable[[str], T], argument: str) -> asyncio.Future[T]:
    """Call a function in a thread of its own, for which the end of the process does not wait. What it returns or raises
    need not be looked at."""
    future: concurrent.futures.Future[T] = concurrent.futures.Future()
    future.set_running_or_notify_cancel()  # cancelling what waits for it does not cancel it

    def run() -> None:
        try:
            future.set_result(function(argument))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="load text", daemon=True).start()
    waited = asyncio.wrap_future(future)
    waited.add_done_callback(lambda done: done.cancelled() or done.exception())  # asyncio logs errors that nobody saw
    return waited


class LoadedText(NamedTuple):
    """What turns requests into token ids, read from the model's files."""

    tokenizer: Tokenizer
    template: ChatTemplate | None
    reason: str  # why it is that template, or none
    timeline: Timeline  # of this load alone: another one may be used


class Worker:
    """The front's half of the boot. It belongs to one event loop."""

    def __init__(self, settings: Settings, engine: EngineClient, timeline: Timeline, owns_process: bool = True) -> None:
        self.settings = settings
        self.engine = engine
        self.timeline = timeline
        self._owns_process = owns_process
        engine.on_first_token = self.write_boot_report
        self._booting: asyncio.Task[Services] | None = None
        self._services: Services | None = None
        self._report_failed = False
        self._describing: asyncio.Task[None] | None = None  # a reference, so that it is not garbage collected
        self._preparing: asyncio.Task[None] | None = None

    @property
    def services(self) -> Services:
        """The engine's client, valid after `ready`."""
        if self._services is None:
            raise RuntimeError("the worker is not ready")
        return self._services

    async def start(self) -> None:
        """Connect to the engine. The boot continues in the background."""
        await self.engine.start()
        self._booting = asyncio.create_task(self._boot())
        self._booting.add_done_callback(lambda task: None if task.cancelled() else task.exception() and None)

    async def ready(self) -> Services:
        """Wait until requests can be served. Raises EngineError, with one line, if the boot failed."""
        assert self._booting is not None, "start() comes first"
        return await asyncio.shield(self._booting)

    async def wait_dead(self) -> str:
        """Wait until the engine has failed for good. Returns the reason."""
        await self.engine.dead.wait()
        return self.engine.error or "the engine ended"

    @property
    def tasks(self) -> set[asyncio.Task[None]]:
        """Work that goes on after its request was answered."""
        return set() if self._services is None else self._services.tasks

    async def turn_away(self) -> None:
        """Refuse the requests that wait for a paused or sleeping engine: the worker stops, and nobody wakes it up any
        more. Batches are left to the next start."""
        if self.engine.gate.is_open:
            return
        await self._close_services()
        self.engine.gate.end()

    async def _close_services(self) -> None:
        for close in [] if self._services is None else self._services.closers:
            await close()

    async def close(self) -> None:
        for task in (self._booting, self._preparing):
            if task is not None:
                task.cancel()
        await self._close_services()
        await self.engine.close()
        if self._services is not None and self._services.metrics.tracer is not None:
            await asyncio.to_thread(self._services.metrics.tracer.close)

    async def _boot(self) -> Services:
        from ember.front.api.services import Services
        from ember.front.api.templates import describe_history
        from ember.front.formats import choose_formats
        from ember.front.generation_config import generation_defaults
        from ember.front.link.engine import EngineError
        from ember.front.metrics import Metrics
        from ember.front.text.sentence_files import SentenceFiles
        from ember.front.text.template_error import TemplateError
        from ember.front.text.tokenizer import TokenizerError
        from ember.front.tracing import Tracer, TracingError

        if self._owns_process:
            gc.freeze()  # imported objects stay, so collections need not visit them
            gc.enable()  # ember.cli disabled it
            sys.setswitchinterval(SWITCH_INTERVAL_S)
        expected = local_tokenizer(self.settings)  # loaded before the engine has imported enough to say where it is
        early = _in_daemon_thread(self._load_text, expected) if expected else None
        located = await asyncio.shield(self.engine.located)
        model_dir = Path(located.model_dir)
        try:
            if early is None or located.tokenizer_dir != expected:
                early = _in_daemon_thread(self._load_text, located.tokenizer_dir)
            text = await early
            tokenizer, template = text.tokenizer, text.template
            self.timeline.phases += text.timeline.phases
            if tokenizer.eos_token_id is not None:
                self.engine.add_end_tokens([tokenizer.eos_token_id])
            defaults = generation_defaults(self.settings, model_dir)
            formats = choose_formats(self.settings, tokenizer, template, model_dir)
            endpoint = self.settings.otlp_traces_endpoint
            tracer = await asyncio.to_thread(Tracer, endpoint, self.settings.served_names[0]) if endpoint else None
        except (TokenizerError, TemplateError, TracingError, OSError, ValueError) as error:
            raise EngineError(str(error)) from None
        info = await self.engine.wait_ready()
        template, reason = await self._usable_template(text, info)
        sentences = SentenceFiles() if info.pooling is None else await asyncio.to_thread(_pooling_texts, model_dir)
        self.timeline.mark("ready")
        self.timeline.extend(info.boot_phases)
        self._services = Services(
            settings=self.settings,
            engine=self.engine,
            tokenizer=tokenizer,
            template=template,
            model_dir=str(model_dir),
            tokenizer_dir=located.tokenizer_dir,
            generation_defaults=defaults,
            created=int(time.time()),
            timeline=self.timeline,
            metrics=Metrics(tracer=tracer),
            reasoning_format=formats.reasoning,
            tool_format=formats.tools,
            sentences=sentences,
        )
        self._report_ready(info, tokenizer, reason if template is None else None)
        self.write_boot_report()
        self._describing = asyncio.create_task(asyncio.to_thread(describe_history, self._services))
        if tokenizer.is_prepared is False:
            self._preparing = asyncio.create_task(self._prepare_tokenizer(located.tokenizer_dir))
        return self._services

    async def _usable_template(self, text: LoadedText, info: Ready) -> tuple[ChatTemplate | None, str]:
        """The template, unless it cannot be used, and the reason. Raises EngineError where one is needed."""
        from ember.front.link.engine import EngineError
        from ember.front.text.template_choice import fault_of

        if text.template is None or (fault := await asyncio.to_thread(fault_of, text.template)) is None:
            return text.template, text.reason
        if info.pooling is None or self.settings.custom_chat_template:
            raise EngineError(fault)
        return None, fault  # it is left from the model that this one was made from

    def _report_ready(self, info: Ready, tokenizer: Tokenizer, without_template: str | None) -> None:
        """Log that requests are served, and the warnings before it. `without_template`: why there is no template."""
        for warning in info.warnings:
            log.warning(warning)
        if without_template is not None and info.pooling is None:
            log.warning(without_template)
        if not info.eos_token_ids and info.pooling is None:
            log.warning("no file of the model names an end token of its vocabulary: answers run to max_tokens")
        if tokenizer.vocab_size > info.vocab_size:
            log.warning(
                "the tokenizer has token ids up to %d, but the model has %d rows (vocab_size): a prompt with a token "
                "beyond them is refused",
                tokenizer.vocab_size - 1,
                info.vocab_size,
            )
        log.info(
            "%s (%s, %.2f M parameters, %s on %s; operators: %s): %s",
            self.settings.served_names[0],
            info.architecture,
            info.num_parameters / 1e6,
            info.dtype if info.weights == "auto" else f"{info.dtype} with {info.weights} weights",
            info.device,
            info.operators,
            self.timeline.summary(),
        )

    async def _prepare_tokenizer(self, directory: str) -> None:
        """Write the prepared tokenizer for the next boot, while idle, in a process of its own, since it needs a core
        for some seconds."""
        from ember.front.text.prepared_tokenizer import cache_directories, place_in

        source = Path(directory) if Path(directory).is_file() else Path(directory) / "tokenizer.json"
        place = place_in(cache_directories(self.settings.base_path), source)
        if place is None:
            return
        await asyncio.sleep(PREPARE_AFTER_S)
        while self.engine.is_busy:
            await asyncio.sleep(PREPARE_AFTER_S)
        command = module_command("ember.front.text.prepared_tokenizer", str(source), str(place))
        quiet = asyncio.subprocess.DEVNULL
        try:
            process = await asyncio.create_subprocess_exec(*command, stdin=quiet, stdout=quiet, stderr=quiet)
        except OSError:
            return
        try:
            await process.wait()
        finally:
            if process.returncode is None:
                process.kill()

    def write_boot_report(self) -> None:
        """Write the timeline to EMBER_BOOT_REPORT, if it is set."""
        path = self.settings.boot_report
        if path and not self._report_failed:
            try:
                Path(path).write_text(json.dumps(self.timeline.report(), indent=1) + "\n")
            except OSError as error:
                self._report_failed = True  # log it once, although the report is written again at the first token
                log.warning("EMBER_BOOT_REPORT=%s cannot be written: %s", path, error.strerror or error)

    def _load_text(self, directory: str) -> LoadedText:
        """Read the tokenizer and the template of a directory or GGUF file."""
        from ember.front.text.prepared_tokenizer import cache_directories
        from ember.front.text.template_choice import choose_template
        from ember.front.text.tokenizer import Tokenizer

        timeline = Timeline(self.timeline.process, self.timeline.origin)
        with timeline.phase("tokenizer") as detail:
            tokenizer = Tokenizer.load(directory, cache_directories(self.settings.base_path))
            if tokenizer.is_prepared is not None:
                detail["prepared"] = tokenizer.is_prepared
        with timeline.phase("template"):
            custom = self.settings.custom_chat_template
            template, reason = choose_template(tokenizer.chat_template, tokenizer.special_tokens, custom)
        if template is not None:  # prepare it while the engine is loading, so that the first chat need not
            threading.Thread(target=template.prepare, name="template", daemon=True).start()
        return LoadedText(tokenizer, template, reason, timeline)
