"""Loading of a model of transformers: its class, its weights, and what its attention is."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ember.boot import Timeline
from ember.config_overrides import overridden
from ember.engine.description.config import DecoderConfig
from ember.engine.description.fields import listed
from ember.engine.description.foreign import EXTRA, text_values
from ember.engine.description.read_config import read_json
from ember.engine.errors import ModelError, described
from ember.engine.fallback.guard import no_exit
from ember.engine.fallback.model import ForeignModel
from ember.engine.fallback.paged import PagedAttention
from ember.engine.fallback.trial import check
from ember.engine.loading.hub_errors import readable
from ember.engine.loading.load import Started, check_room, read_tensors
from ember.engine.loading.mapped import Pages
from ember.engine.loading.plan import read_headers
from ember.engine.loading.progress import Say
from ember.engine.loading.stored import own_entries, plan_stored, stored_bytes
from ember.engine.operators.native_modules import use_library

log = logging.getLogger(__name__)
_DUMMY_SEED = 1234


@dataclass(slots=True)
class LoadedForeign:
    """A model of transformers with its weights."""

    model: ForeignModel
    pages: Pages | None  # the mappings that weights are used from; None if no weight is mapped
    mapped_bytes: int
    version: str  # of transformers
    warnings: list[str]


def load_foreign(
    model_dir: Path,
    config: DecoderConfig,
    timeline: Timeline,
    *,
    dtype: torch.dtype,
    device: torch.device,
    overrides: Mapping[str, Any] | None = None,
    started: Started | None = None,
    say: Say | None = None,
    load_format: str = "auto",
    trust_remote_code: bool = False,
    max_model_len: int | None = None,
) -> LoadedForeign:
    """Import transformers, make the model with its weights, and try it. Raises ModelError with one line that names
    the model's class and the reason if it cannot be served."""
    with timeline.phase("import_transformers") as detail:
        detail["version"] = version = import_transformers()
        with named(config):
            config_class, model_class, values = classes_of(model_dir, config, overrides, trust_remote_code)
    with timeline.phase("load") as detail:
        read, stored = None, _Stored({})
        if load_format != "dummy":
            name = str(dtype).removeprefix("torch.")
            entries, skipped = own_entries(config, read_headers(model_dir, load_format))
            if skipped and say is not None:
                size = readable(sum(entry.nbytes for entry in skipped.values()))
                parts = f"{len(skipped)} weights of other parts, {size}, are skipped"
                say(f"{config.architecture} is served as text: {parts}")
            if device.type == "cuda":
                check_room(stored_bytes(entries, name), torch.cuda.mem_get_info(device)[0])
            plan = started.plan if started is not None else plan_stored(entries, name)
            read = read_tensors(plan, torch.device("cpu"), started, say)  # transformers copies them to a GPU
            stored = _Stored(
                {each.spec: read.by_name.pop(each.name)[0].view(entries[each.spec].shape) for each in plan.parameters}
            )
            report = read.report
            detail.update(bytes=report.nbytes, read_bytes=report.read_bytes, read_s=round(report.seconds, 4))
        with named(config):
            lm, attention, warnings = _make(config_class, model_class, values, dtype, device, stored)
            model = ForeignModel(lm, attention, config, max_model_len)
    if device.type == "cpu":
        use_library(model.lm)
    with timeline.phase("trial"), named(config):
        check(model)
    if read is None or device.type != "cpu":
        return LoadedForeign(model, None, 0, version, warnings)
    return LoadedForeign(model, read.pages, read.mapped_bytes, version, warnings)


@contextmanager
def named(config: DecoderConfig) -> Iterator[None]:
    """Begin the message of a ModelError in the block with the model's class."""
    try:
        yield
    except ModelError as error:
        raise ModelError(f"{config.architecture} cannot be served through transformers: {error}") from None


def import_transformers() -> str:
    """Import transformers without its progress bars and reports. Returns its version. Raises ModelError."""
    try:
        import transformers
        from transformers.utils import logging as their_logging
    except ImportError as error:
        raise ModelError(f"transformers cannot be imported ({error}): pip install '{EXTRA}'") from None
    their_logging.set_verbosity_error()
    their_logging.disable_progress_bar()
    return str(transformers.__version__)


class _Stored(dict[str, Any]):
    """The stored tensors by name, which transformers reads one by one."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__({name: _StoredTensor(tensor) for name, tensor in tensors.items()})


class _StoredTensor:
    """A stored tensor that is forgotten when it was read, so that what is made of several is not there twice."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor: Tensor | None = tensor
        self.dtype = tensor.dtype
        self.shape = tensor.shape

    def __getitem__(self, index: Any) -> Tensor:
        tensor, self._tensor = self._tensor, None
        assert tensor is not None
        return tensor[index]


def _make(
    config_class: Any,
    model_class: Any,
    values: Mapping[str, Any],
    dtype: torch.dtype,
    device: torch.device,
    stored: _Stored,
) -> tuple[Any, PagedAttention, list[str]]:
    """The language model with its weights, its attention function, and warnings. Raises ModelError."""
    attention = PagedAttention()
    try:
        with no_exit():
            theirs = config_class.from_dict(values)
        theirs.use_cache = False
        with torch.random.fork_rng(devices=[]), no_exit():
            torch.manual_seed(_DUMMY_SEED)  # of weights that no file has, with LOAD_FORMAT=dummy
            lm, info = model_class.from_pretrained(
                None,
                config=theirs,
                state_dict=stored,
                dtype=dtype,
                attn_implementation=attention.name,
                output_loading_info=True,
            )
    except ModelError:
        raise
    except Exception as error:  # code of any model
        log.debug("transformers could not make the model", exc_info=True)
        raise ModelError(f"transformers could not make it: {described(error)}") from error
    if theirs.is_encoder_decoder:
        raise ModelError("it is an encoder and a decoder, and decoders alone are served")
    if stored and info["missing_keys"]:
        raise ModelError(f"the checkpoint lacks {listed(sorted(info['missing_keys']))}: it is incomplete")
    warnings = []
    if info["unexpected_keys"]:
        unused = listed(sorted(info["unexpected_keys"]))
        warnings.append(f"weights that transformers' {model_class.__name__} does not read: {unused}")
    return lm.eval().to(device), attention, warnings


def classes_of(
    model_dir: Path, config: DecoderConfig, overrides: Mapping[str, Any] | None, trust_remote_code: bool
) -> tuple[Any, Any, dict[str, Any]]:
    """The classes of the configuration and of the model, transformers' own or those of modules beside the weights where
    TRUST_REMOTE_CODE allows it, and the fields of config.json. Raises ModelError."""
    import transformers

    values = overridden(read_json(model_dir / "config.json", required=True), overrides or {})
    if config.is_shell:
        values = text_values(values)
    model_class = getattr(transformers, config.text_architecture, None)
    if model_class is not None:
        config_class = model_class.config_class
    else:
        config_class, model_class = _remote_classes(model_dir, values, trust_remote_code)
    if not getattr(model_class, "_supports_attention_backend", False):
        raise ModelError("its attention does not go through transformers' attention interface")
    if getattr(model_class, "_is_stateful", False):
        raise ModelError("it has a recurrent state of its own beside the KV cache")
    return config_class, model_class, values


def _remote_classes(model_dir: Path, values: Mapping[str, Any], trust_remote_code: bool) -> tuple[Any, Any]:
    """The classes that `auto_map` names, of modules beside the weights. Raises ModelError."""
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    code = values.get("auto_map") or {}
    names = code.get("AutoConfig"), code.get("AutoModelForCausalLM")
    if not trust_remote_code or not all(isinstance(name, str) for name in names):
        raise ModelError("transformers has no class of this name")
    try:
        with no_exit():
            config_class, model_class = (get_class_from_dynamic_module(name, str(model_dir)) for name in names)
    except Exception as error:  # code of the model's repository
        raise ModelError(f"its own code cannot be imported: {described(error)}") from error
    return config_class, model_class
