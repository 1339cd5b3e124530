"""`ember quantize SOURCE TARGET --format FORMAT`: a checkpoint with plain weights, rounded to a quantised format.

The matrices of attention, MLP and experts are rounded to nearest. Routers, head, embedding and norms are left as they
are. One file of weights is in memory at a time.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ember.engine.description.config import DecoderConfig
from ember.engine.description.read_config import read_json
from ember.engine.description.sentence_transformers import module_directories, reader
from ember.engine.description.weight_specs import weight_specs
from ember.engine.description.weights import LinearSpec
from ember.engine.errors import ModelError
from ember.engine.loading.files import INDEX, SINGLE
from ember.engine.loading.load import read_model_config
from ember.engine.loading.plan import DTYPES, make_plan, read_headers
from ember.engine.loading.resolve import resolve_model
from ember.engine.loading.safetensors_header import TensorEntry
from ember.engine.loading.write import write_safetensors
from ember.engine.quantization.write_float import Float8BlockWriter, Float8RowWriter, Fp4Writer, NF4Writer
from ember.engine.quantization.write_int import AWQWriter, CompressedWriter, GPTQWriter, Writer
from ember.gguf.types import BLOCKS
from ember.sentence_layout import MODULES_FILE, module_root
from ember.sizes import binary_size

GROUP_SIZE = 128
# Values of --format -> the writer, of a group size, and whether the format has groups.
FORMATS: dict[str, tuple[Callable[[int], Writer | None], bool]] = {
    "gptq": (lambda group: GPTQWriter(group), True),
    "gptq-8bit": (lambda group: GPTQWriter(group, bits=8), True),
    "awq": (lambda group: AWQWriter(group), True),
    "w4a16": (lambda group: CompressedWriter(4, group), True),
    "w8a16": (lambda group: CompressedWriter(8, None), False),
    "w8a8": (lambda group: CompressedWriter(8, None, rounds_inputs=True), False),
    "fp8": (lambda group: Float8RowWriter(), False),
    "fp8-block": (lambda group: Float8BlockWriter(), False),
    "nvfp4": (lambda group: Fp4Writer(16), False),
    "mxfp4": (lambda group: Fp4Writer(32), False),
    "nf4": (lambda group: NF4Writer(), False),
}
GGUF = "gguf-"  # the beginning of the formats that are types of a GGUF file's matrices
_NOT_COPIED = ("config.json", "__init__.py")  # the first is written, the second makes the demo model's a package
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".index.json", ".h5", ".msgpack", ".onnx")


@dataclass(frozen=True, slots=True)
class Report:
    """What was written."""

    quantized: int  # matrices
    ignored: list[str]  # linear layers that are left as they are
    bytes_before: int
    bytes_after: int
    is_plain: bool = False  # whether the type that was written has no blocks

    def __str__(self) -> str:
        left = f"; left as they are: {_some(self.ignored)}" if self.ignored else ""
        sizes = f"{binary_size(self.bytes_before)} became {binary_size(self.bytes_after)}"
        return f"{self.quantized} matrices {'written' if self.is_plain else 'quantized'}{left}. {sizes}."


def quantize(source: str, target: Path, form: str, group: int | None, say: Callable[[str], None]) -> Report:
    """Write the quantised checkpoint to a new or an empty directory. Raises ModelError, OSError."""
    make, has_groups = FORMATS.get(form, (lambda group: None, False))
    if group is not None and not has_groups:
        raise ModelError(f"--group-size has no meaning with --format {form}, whose scales have a place of their own")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ModelError(f"{target} exists and is not an empty directory: name another target")
    writer = make(group or GROUP_SIZE)
    directory = resolve_model(source, setting="SOURCE")
    config = read_model_config(directory)
    if config.quantization:
        method = config.quantization.get("quant_method")
        raise ModelError(f"{directory} is quantized already ({method}): name a checkpoint with plain weights")
    entries = read_headers(directory)
    plan = make_plan(config, entries, "float32")  # whether config.json and the files fit
    config = replace(config, tie_word_embeddings=plan.is_tied)
    if writer is None:
        before = sum(entry.nbytes for entry in entries.values())
        with whole_or_nothing(target) as unfinished:
            from ember.cli.gguf_file import write_model

            type_name = form.removeprefix(GGUF).upper()
            written = write_model(directory, unfinished, type_name, config, entries, plan.is_tied, _read, say)
        return Report(written[0], [], before, written[1], is_plain=type_name not in BLOCKS)
    modules, transposed = _modules(config, entries)
    if transposed and form.startswith("fp8"):
        raise ModelError(
            f"{config.architecture} stores matrices as [in, out], which {form} has not: name another format"
        )
    ignored = _ignored(config, entries, modules)
    with whole_or_nothing(target) as unfinished:
        report = _write(directory, unfinished, entries, modules, transposed, writer, ignored, say)
        listed = [*ignored, *_others(config, entries, ignored)]
        document = read_json(directory / "config.json", required=True)
        (unfinished / "config.json").write_text(
            json.dumps({**document, "quantization_config": writer.config(listed)}, indent=2) + "\n"
        )
        for file in [*directory.iterdir(), *directory.glob("additional_chat_templates/*.jinja")]:
            if file.is_file() and file.name not in _NOT_COPIED and not file.name.endswith(_WEIGHTS):
                copy = unfinished / file.relative_to(directory)
                copy.parent.mkdir(exist_ok=True)
                shutil.copyfile(file, copy)
        _copy_modules(directory, unfinished)
    return report


def _copy_modules(directory: Path, target: Path) -> None:
    """Copy the modules of sentence-transformers, which have weights of their own. In the copy the model is beside
    modules.json, also where it is in a directory of its own."""
    root = module_root(directory)
    for module in module_directories(reader(root)):
        if (root / module).is_dir() and root / module != directory:
            shutil.copytree(root / module, target / module, dirs_exist_ok=True)
    if root == directory:
        return
    entries = reader(root)(MODULES_FILE)
    moved = [{**entry, "path": ""} if entry.get("path") == directory.name else entry for entry in entries]
    (target / MODULES_FILE).write_text(json.dumps(moved, indent=2) + "\n")
    for file in root.glob("config_sentence_transformers.json"):
        shutil.copyfile(file, target / file.name)


@contextmanager
def whole_or_nothing(target: Path) -> Iterator[Path]:
    """A directory to write to, whose content is moved to `target` at the end. If the block fails nothing is left."""
    was_there = target.exists()
    unfinished = target / f".unfinished-{os.getpid()}"
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        for file in unfinished.iterdir():
            file.rename(target / file.name)
        unfinished.rmdir()
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        if not was_there:
            with suppress(OSError):
                target.rmdir()
        raise


def _modules(config: DecoderConfig, entries: Mapping[str, TensorEntry]) -> tuple[dict[str, str], bool]:
    """The modules that are rounded, by the names of their tensors, and whether these are [in, out]."""
    base, found, transposed = _base(config, entries), {}, False
    for spec in _linear_specs(config):
        if spec.name == "lm_head" or spec.name.endswith("router"):
            continue
        for output in spec.outputs:
            stored = output.stored
            if stored.stack is not None:
                raise ModelError(
                    f"{stored.name} has the matrices of all experts in one tensor, which these formats do not have: "
                    "name a checkpoint with a tensor for each expert"
                )
            found[(stored.name + stored.suffix).removeprefix(base)] = stored.name.removeprefix(base)
            transposed = stored.transposed
    return found, transposed


def _ignored(config: DecoderConfig, entries: Mapping[str, TensorEntry], modules: Mapping[str, str]) -> list[str]:
    base, rounded = _base(config, entries), set(modules.values())
    names = [output.stored.name.removeprefix(base) for spec in _linear_specs(config) for output in spec.outputs]
    return [name for name in dict.fromkeys(names) if name not in rounded]


def _others(config: DecoderConfig, entries: Mapping[str, TensorEntry], ignored: list[str]) -> list[str]:
    """The linear layers that programs with modules of their own have beside the stored ones that are the decoder's: a
    head that is tied to the embedding, and those of encoders of images and sound. They would be quantised, unless the
    configuration says that they are not."""
    base, head = _base(config, entries), config.names.lm_head
    specs = [spec for spec in weight_specs(config) if not isinstance(spec, LinearSpec)]
    known = {output.stored.name + output.stored.suffix for spec in _linear_specs(config) for output in spec.outputs}
    known = {name.removeprefix(base) for name in known | {spec.source for spec in specs}}
    found = [name for name, entry in entries.items() if name.endswith(".weight") and len(entry.shape) == 2]
    others = [head, *(name.removesuffix(".weight") for name in found if name.removeprefix(base) not in known)]
    return [name for name in dict.fromkeys(others) if name not in ignored]


def _base(config: DecoderConfig, entries: Mapping[str, TensorEntry]) -> str:
    """The prefix of the family's names that those in the files lack, as in checkpoints without a head."""
    return "" if any(name.startswith(f"{config.names.embed_tokens}.") for name in entries) else config.names.base


def _linear_specs(config: DecoderConfig) -> Iterator[LinearSpec]:
    return (spec for spec in weight_specs(config) if isinstance(spec, LinearSpec))


def _write(
    directory: Path,
    target: Path,
    entries: Mapping[str, TensorEntry],
    modules: Mapping[str, str],
    transposed: bool,
    writer: Writer,
    ignored: list[str],
    say: Callable[[str], None],
) -> Report:
    """Write the weights, to as many files as the source has."""
    files = sorted({entry.file for entry in entries.values()})
    placed: dict[str, str] = {}
    after = 0
    for number, file in enumerate(files, 1):
        made: dict[str, Tensor] = {}
        for name, entry in entries.items():
            if entry.file != file:
                continue
            tensor = _read(entry)
            if name not in modules:
                made[name] = tensor
                continue
            weight = tensor.T.contiguous() if transposed else tensor
            made |= writer.tensors(modules[name], weight)
        name = SINGLE if len(files) == 1 else f"model-{number:05}-of-{len(files):05}.safetensors"
        after += write_safetensors(target / name, made)
        placed |= dict.fromkeys(made, name)
        say(f"wrote {name} ({number} of {len(files)})")
    if len(files) > 1:
        index: dict[str, Any] = {"metadata": {"total_size": after}, "weight_map": placed}
        (target / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    return Report(len(modules), ignored, sum(entry.nbytes for entry in entries.values()), after)


def _read(entry: TensorEntry) -> Tensor:
    """A stored tensor, in memory of its own."""
    with entry.file.open("rb") as file:
        file.seek(entry.offset)
        memory = bytearray(file.read(entry.nbytes))
    if len(memory) < entry.nbytes:
        raise ModelError(f"{entry.file} became shorter while it was read: download it again")
    dtype = getattr(torch, DTYPES[entry.dtype])
    return torch.frombuffer(memory, dtype=dtype).view(entry.shape) if memory else torch.empty(entry.shape, dtype=dtype)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
