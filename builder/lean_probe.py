"""The probe of a lean torch: it does everything that the engine does with torch once, to find the modules it needs.

On a machine with a GPU the requests run there too. Without a GPU the kernels' modules are imported, and every attribute
of torch that the engine's source names is looked up.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import msgspec

import ember
from ember.boot import Timeline
from ember.wire import Configure, Generate, Grammar, Pool, PoolingTask, SamplingParams

_SCHEMA = '{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}'
_SAMPLINGS = (
    SamplingParams(max_tokens=4, temperature=0.0),
    SamplingParams(max_tokens=4, temperature=0.8, top_k=20, top_p=0.9, min_p=0.01, seed=1),
    SamplingParams(max_tokens=4, n=2, repetition_penalty=1.1, presence_penalty=0.5, frequency_penalty=0.5),
    SamplingParams(max_tokens=4, logprobs=5, prompt_logprobs=2, logprob_token_ids=[3, 4]),
    SamplingParams(max_tokens=4, logit_bias={5: 2.0}, bad_words=[[7], [8, 9]], min_tokens=2, ignore_eos=True),
    SamplingParams(max_tokens=4, temperature=0.0, allowed_token_ids=[5, 6, 7]),
    SamplingParams(max_tokens=8, temperature=0.0, grammar=Grammar("json_schema", _SCHEMA)),
    SamplingParams(max_tokens=8, seed=3, grammar=Grammar("regex", "[a-z]+")),
)
_PROMPT_LENGTHS = (3, 40, 200)  # tokens: short, for the C library, for torch's matrix products


def run(is_over: Callable[[], bool]) -> int:
    """Run the probe, or stop early when `is_over` returns True. Returns the number of generated tokens."""
    import torch

    _import_all("ember.engine")
    try:
        import triton  # noqa: F401
    except ImportError:
        pass
    else:
        _import_all("ember_kernels")
    for name in attributes_of_torch():
        _look_up(name)
    tokens = 0
    for configure in _configurations(torch):
        if not is_over():
            tokens += _requests(configure)
            pool_texts(msgspec.structs.replace(configure, runner="pooling", convert="embed"))
    return tokens


def _configurations(torch: ModuleType) -> Iterator[Configure]:
    base = Configure(model="demo", device="cpu", max_model_len=1024, num_blocks=160, seed=0)
    for dtype in ("auto", "bfloat16", "float16", "float32"):
        yield msgspec.structs.replace(base, dtype=dtype)
    for weights in ("int8", "int4"):
        yield msgspec.structs.replace(base, cpu_weights=weights)
    if torch.cuda.is_available():
        for dtype in ("auto", "float16", "float32"):
            yield msgspec.structs.replace(base, device="cuda", dtype=dtype)


def _requests(configure: Configure) -> int:
    from ember.engine.core.assemble import assemble
    from ember.engine.core.boot import open_model
    from ember.engine.core.warmup import warm_up
    from ember.engine.errors import ModelError

    timeline = Timeline("probe")
    try:
        engine, _ = assemble(configure, open_model(configure, timeline, lambda message: None), timeline)
    except ModelError:  # quantised weights need the C library
        return 0
    warm_up(engine, "full")
    tokens = 0
    number = 0
    for length in _PROMPT_LENGTHS:
        for sampling in _SAMPLINGS:
            if length != _PROMPT_LENGTHS[0] and (sampling.grammar is not None or sampling.logit_bias):
                continue
            number += 1
            engine.add(Generate(number, [10 + i % 50 for i in range(length)], sampling))
        while engine.has_work:
            tokens += sum(len(output.token_ids) for output in engine.step())
    while engine.do_chore():
        pass
    engine.stats()
    return tokens


def pool_texts(configure: Configure) -> int:
    """Pool a short and a longer text for each task of a pooling model. Returns the number of results."""
    from ember.engine.core.assemble import assemble
    from ember.engine.core.boot import open_model
    from ember.engine.errors import ModelError

    timeline = Timeline("probe")
    try:
        engine, ready = assemble(configure, open_model(configure, timeline, lambda message: None), timeline)
    except ModelError:  # quantised weights need the C library
        return 0
    for number, (task, length) in enumerate(product(ready.tasks, _PROMPT_LENGTHS[:2])):
        engine.pool(Pool(number, [10 + i % 50 for i in range(length)], cast(PoolingTask, task)))
    results = 0
    while engine.has_work:
        results += sum(output.pooled is not None for output in engine.step())
    while engine.do_chore():
        pass
    return results


def _import_all(package: str) -> None:
    found = importlib.import_module(package)
    for module in pkgutil.walk_packages(found.__path__, f"{package}."):
        if not module.name.endswith("__main__") and ".decoder_" not in module.name:
            importlib.import_module(module.name)


def attributes_of_torch() -> list[str]:
    """Every `torch.a.b` in the engine's and the kernels' source."""
    roots = [Path(ember.__file__).parent / "engine"]
    try:
        import ember_kernels

        roots += [Path(path) for path in ember_kernels.__path__]
    except ImportError:
        pass
    found: set[str] = set()
    for root in roots:
        for file in root.rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Attribute):
                    text = ast.unparse(node)
                    if text.startswith("F."):
                        text = f"torch.nn.functional.{text.removeprefix('F.')}"
                    if text.startswith("torch.") and all(part.isidentifier() for part in text.split(".")):
                        found.add(text)
    return sorted(found - {"torch.ops.higher_order"})


def _look_up(name: str) -> Any:
    value: Any = importlib.import_module("torch")
    for part in name.split(".")[1:]:
        value = getattr(value, part, None)
    return value
