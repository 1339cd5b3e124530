"""A checkpoint's configuration and the headers of its weight files, without its weights. No torch is imported.

A model that is only on the Hub has its small files downloaded. Of its safetensors files the headers are read by HTTP
range requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ember.engine.description.config import DecoderConfig
from ember.engine.description.read_config import read_json
from ember.engine.errors import ModelError
from ember.engine.loading.download import TIMEOUT, WORKERS, patiently
from ember.engine.loading.files import choose_weights
from ember.engine.loading.hub_errors import explain
from ember.engine.loading.hub_files import Repository
from ember.engine.loading.load import config_reader
from ember.engine.loading.plan import dummy_entries, read_headers
from ember.engine.loading.resolve import MODEL, NotCachedError, Places, is_offline, resolve_model
from ember.engine.loading.safetensors_header import TensorEntry, checked_entries
from ember.gguf.files import Choice, split_name
from ember.wire import Configure


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model's configuration, and its stored tensors by name."""

    model_dir: Path
    config: DecoderConfig
    entries: Mapping[str, TensorEntry]
    file_bytes: int = 0  # of the weight files, if `entries` are an estimate
    is_estimate: bool = False  # whether `entries` are what config.json demands, as the files have not been read


def open_checkpoint(configure: Configure) -> Checkpoint:
    """Find the model as a boot does, and read its headers. Raises ModelError."""
    read_config, load_format = config_reader(configure), configure.load_format
    choice = Choice(configure.gguf_quantization, configure.gguf_file)
    places = Places(configure.base_path, configure.download_dir, configure.hf_token, may_download=False)
    try:
        model_dir = resolve_model(configure.model, configure.revision, places, read_config, load_format, choice)
    except NotCachedError:
        if is_offline():
            raise
        return _from_hub(configure, places._replace(may_download=True), choice)
    config = read_config(model_dir)
    if load_format == "dummy":
        return Checkpoint(model_dir, config, _dummy_entries(config), is_estimate=True)
    return Checkpoint(model_dir, config, read_headers(model_dir, load_format))


def _dummy_entries(config: DecoderConfig) -> dict[str, TensorEntry]:
    """`dummy_entries`; none for a model whose weights only transformers knows."""
    return {} if config.through_transformers else dummy_entries(config)


def _from_hub(configure: Configure, places: Places, choice: Choice) -> Checkpoint:
    """The checkpoint of a model that is not here. Its small files are downloaded."""
    read_config, load_format = config_reader(configure), configure.load_format
    name, own = split_name(configure.model.strip())
    if own or choice or load_format == "gguf":
        raise ModelError(f"{configure.model} is not here: a GGUF file is described when it is downloaded")
    model_dir = resolve_model(name, configure.revision, places, read_config, None)
    config = read_config(model_dir)
    if load_format == "dummy":
        return Checkpoint(model_dir, config, _dummy_entries(config), is_estimate=True)
    repository = Repository(name, configure.revision, MODEL.setting, MODEL.required, load_format)
    return _on_hub(repository, model_dir, config, configure.hf_token)


def _on_hub(repository: Repository, model_dir: Path, config: DecoderConfig, token: str | None) -> Checkpoint:
    """The checkpoint whose small files are in `model_dir`, a snapshot of the commit that this directory names."""
    try:
        import huggingface_hub
    except ImportError:
        raise ModelError(f"{repository.label} has no weights here, and huggingface_hub is not installed") from None
    try:
        return _read_hub(huggingface_hub, repository, model_dir, config, token)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(explain(error, repository, model_dir.parents[2], has_token=bool(token))) from None


def _read_hub(
    hub: Any, repository: Repository, model_dir: Path, config: DecoderConfig, token: str | None
) -> Checkpoint:
    name, commit = repository.name, model_dir.name
    api = hub.HfApi(token=token, library_name="ember")
    info = patiently(lambda: api.model_info(name, revision=commit, files_metadata=True, timeout=TIMEOUT))
    sizes = {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or []}

    def read_index(file: str) -> Mapping[str, object]:
        cache_dir = model_dir.parents[2]
        fetch = partial(hub.hf_hub_download, name, file, revision=commit, cache_dir=cache_dir, token=token)
        return read_json(Path(patiently(fetch)), required=True)

    files = choose_weights(repository.label, sizes, read_index, str(repository.load_format))
    num_bytes = sum(sizes[file] for file in files)
    if not all(file.endswith(".safetensors") for file in files):  # the others say only at their ends what they have
        return Checkpoint(model_dir, config, _dummy_entries(config), num_bytes, is_estimate=True)

    def read(file: str) -> dict[str, TensorEntry]:
        parse = partial(api.parse_safetensors_file_metadata, name, file, revision=commit, timeout=TIMEOUT)
        header = {
            tensor: {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": entry.data_offsets}
            for tensor, entry in patiently(parse).tensors.items()
        }
        return checked_entries(Path(file), header, 0, sizes[file])

    entries: dict[str, TensorEntry] = {}
    with ThreadPoolExecutor(WORKERS) as pool:
        for found in pool.map(read, files):
            entries |= found
    return Checkpoint(model_dir, config, entries)
