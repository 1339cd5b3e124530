"""`ember inspect`: what a boot of a model would choose, need and ignore, without a boot.

Neither torch nor the weights are read. The report is text, or JSON (docs/inspect.md describes its fields).
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec

from ember.engine.core.prediction import DeviceReport, GroupReport, PoolingReport, Prediction, predict
from ember.engine.description.fields import listed
from ember.engine.errors import ModelError
from ember.front.formats import Formats, formats_of
from ember.front.generation_config import generation_defaults
from ember.front.start import configure_of
from ember.front.text.template_choice import choose_template, fault_of
from ember.front.text.template_error import TemplateError
from ember.front.text.tokenizer import check_files
from ember.front.text.tokenizer_files import TokenizerError, read_chat_template
from ember.interpreter import module_command
from ember.logs import printable
from ember.settings import Settings
from ember.sizes import binary_size
from ember.wire import Configure

CONSTRUCT_S = 180.0  # of the process that makes a model of transformers
_LABEL = 14  # columns of the names at the left


@dataclass(frozen=True, slots=True)
class Text:
    """What the front would choose."""

    chat_template: str  # custom, own, none
    chat_template_reason: str
    tool_calls: str  # the format's name, or none
    tool_calls_reason: str
    reasoning: str
    reasoning_reason: str


class InspectError(Exception):
    """The model cannot be served; the message is one line."""


def report(settings: Settings, unused: Sequence[str], *, as_json: bool) -> str:
    """The report on the model of the settings. `unused`: lines about settings without effect. Raises InspectError."""
    try:
        configure = configure_of(settings)
        predicted = predict(configure)
        if predicted.through_transformers:
            _construct(msgspec.structs.replace(configure, model=predicted.model_dir))
        text = _text(settings, Path(predicted.model_dir), Path(predicted.tokenizer_dir))
    except (ModelError, TokenizerError, TemplateError, ValueError) as error:
        raise InspectError(str(error)) from None
    name = settings.served_names[0]
    if as_json:
        fields = {"model": name, **asdict(predicted), "text": asdict(text), "unused_settings": list(unused)}
        return json.dumps(fields, indent=2)
    return "\n".join(map(printable, [name, *_lines(predicted, text, unused)]))  # names of files and tensors are in it


def _construct(configure: Configure) -> None:
    """Let a process make the model of transformers without its weights. Raises ModelError with the reason if that says
    that the model cannot be served. A process that ends without an answer decides nothing."""
    command = module_command("ember.engine.fallback.construct")
    try:
        done = subprocess.run(
            command, input=msgspec.json.encode(configure), capture_output=True, timeout=CONSTRUCT_S, check=True
        )
        error = json.loads(done.stdout)["error"]
    except (subprocess.SubprocessError, OSError, ValueError):
        return
    if error is not None:
        raise ModelError(error)


def failure(message: str) -> str:
    """The JSON document of a model that cannot be served."""
    return json.dumps({"error": message}, indent=2)


def _text(settings: Settings, model_dir: Path, tokenizer_dir: Path) -> Text:
    check_files(tokenizer_dir)
    generation_defaults(settings, model_dir)
    own = read_chat_template(tokenizer_dir)
    template, reason = choose_template(own, {}, settings.custom_chat_template)
    if template is not None and (fault := fault_of(template)) is not None:
        raise TemplateError(fault)
    formats: Formats = formats_of(settings, own, template, model_dir)
    return Text(
        chat_template="none" if template is None else "custom" if settings.custom_chat_template else "own",
        chat_template_reason=reason,
        tool_calls=formats.tools_name,
        tool_calls_reason=formats.tools_reason,
        reasoning=formats.reasoning_name,
        reasoning_reason=formats.reasoning_reason,
    )


def _lines(predicted: Prediction, text: Text, unused: Sequence[str]) -> Iterator[str]:
    yield _row("architecture", _architecture(predicted))
    yield _row("parameters", _parameters(predicted))
    about = "estimated from config.json" if predicted.is_estimate else "in the files"
    size = f"{binary_size(predicted.file_bytes)} {about}" if predicted.file_bytes else about
    yield _row("weights", f"{predicted.quantization}, {predicted.checkpoint_dtype}, {size}")
    yield _row("context", f"{predicted.max_position_embeddings or 'an unknown number of'} tokens")
    yield _row("tasks", ", ".join(predicted.tasks))
    if predicted.pooling is not None:
        yield _row("pooling", _pooling(predicted.pooling))
        if predicted.pooling.labels:
            yield _row("labels", listed(predicted.pooling.labels))
    else:
        yield _row("chat template", text.chat_template_reason)
        yield _row("tool calls", f"{text.tool_calls} ({text.tool_calls_reason})")
        yield _row("reasoning", f"{text.reasoning} ({text.reasoning_reason})")
    for device in predicted.devices:
        yield ""
        yield from _device_lines(device)
    ignored = [*predicted.warnings, *unused]
    if predicted.through_transformers:
        ignored.insert(
            0, "transformers' code computes this model: a trial at the boot decides whether it can be served"
        )
    if predicted.predicting_tensors:
        further = f"{predicted.predicting_tensors} weights, {binary_size(predicted.predicting_bytes)}"
        ignored.insert(0, f"the layers that predict further tokens: {further}")
    if predicted.skipped_tensors:
        skipped = f"{predicted.skipped_tensors} weights, {binary_size(predicted.skipped_bytes)}"
        ignored.insert(0, f"the parts of {predicted.architecture} beside its language model: {skipped}")
    if ignored:
        yield ""
        yield "ignored, or worth to know"
        yield from (f"  - {line}" for line in ignored)


def _pooling(pooling: PoolingReport) -> str:
    """The way from hidden states to outputs."""
    parts = [" and ".join(pooling.types)]
    if pooling.layers:
        parts.append(f"{pooling.layers} linear layer{'s' * (pooling.layers > 1)}")
    if pooling.dimensions is not None:
        parts.append(f"{pooling.dimensions} outputs")
    if pooling.is_matryoshka:
        allowed = ", ".join(map(str, pooling.matryoshka_dimensions))
        parts.append(f"which a request may cut to {allowed or 'fewer'}")
    return ", ".join([*parts, "as they are" if pooling.activation == "none" else pooling.activation])


def _row(label: str, value: str) -> str:
    return f"  {label:<{_LABEL}} {value}"


def _architecture(predicted: Prediction) -> str:
    inner = predicted.text_architecture
    layers = f"{predicted.num_layers or 'some'} layers"
    if predicted.through_transformers:
        layers += ", through transformers"
    if inner != predicted.architecture and predicted.pooling is not None:
        return f"{predicted.architecture}, on the decoder of {inner}, {layers}"
    if inner != predicted.architecture:
        return f"{predicted.architecture}, served as text: its language model is {inner}, {layers}"
    return f"{predicted.architecture}, {layers}"


def _parameters(predicted: Prediction) -> str:
    total = _count(predicted.parameters)
    if predicted.active_parameters == predicted.parameters:
        return total
    return f"{total}, of which a token needs {_count(predicted.active_parameters)}"


def _count(number: int) -> str:
    for word, size in (("billion", 10**9), ("million", 10**6)):
        if number >= size:
            return f"{number / size:.2f} {word}"
    return str(number)


def _device_lines(device: DeviceReport) -> Iterator[str]:
    memory = f"{binary_size(device.memory_bytes)} of memory" if device.memory_bytes else "no memory"
    yield f"{device.name}: {'fits' if device.fits else 'does not fit'} ({memory})"
    if device.reason is not None:
        yield _row("reason", device.reason)
    if device.operators is not None:
        yield _row("operators", f"{device.operators} ({device.operators_reason}), {device.dtype}")
    if device.weight_bytes is not None:
        yield _row("weights", binary_size(device.weight_bytes))
    if device.cache_groups:
        yield _row("cache", f"{binary_size(device.cache_bytes_per_token or 0)} a token: {_groups(device.cache_groups)}")
    if device.fits:
        size, length = binary_size(device.cache_bytes or 0), device.max_model_len
        yield _row("room", f"{size} in {device.num_blocks} pages of {device.block_size} tokens")
        yield _row("concurrency", f"{device.concurrency:g} sequences of {length} tokens, at most {device.max_num_seqs}")
    yield from (_row("warning", warning) for warning in device.warnings)


def _groups(groups: Sequence[GroupReport]) -> str:
    """The groups with equal properties together."""
    merged: dict[tuple[str, int | None], list[int]] = {}
    for group in groups:
        found = merged.setdefault((group.kind, group.window), [0, 0])
        found[0] += group.layers
        found[1] += group.bytes_per_token or group.bytes_per_sequence
    return ", ".join(
        f"{binary_size(size)} in {layers} layers{' with latents' if kind == 'latent' else ''}"
        + (" a sequence" if kind == "state" else "" if window is None else f" for the last {window} tokens")
        for (kind, window), (layers, size) in merged.items()
    )
