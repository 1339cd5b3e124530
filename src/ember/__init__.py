"""Ember: a serverless GPU worker for large language models.

`from ember import LLM, SamplingParams` is the engine in a Python program (`front/offline/`). What it needs is imported
when a name is first asked for, so that `import ember` stays cheap.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_ROOM = "ember.front.offline"
_OFFLINE = {
    "LLM": "llm",
    "PromptError": "errors",
    "TextPrompt": "prompts",
    "TokensPrompt": "prompts",
    **dict.fromkeys(
        ("SamplingParams", "BeamSearchParams", "PoolingParams", "StructuredOutputsParams", "GuidedDecodingParams"),
        "params",
    ),
    **dict.fromkeys(
        (
            *("RequestOutput", "CompletionOutput", "Logprob", "BeamSearchOutput", "BeamSearchSequence"),
            *("PoolingRequestOutput", "EmbeddingRequestOutput", "ClassificationRequestOutput", "ScoringRequestOutput"),
            *("PoolingOutput", "EmbeddingOutput", "ClassificationOutput", "ScoringOutput"),
        ),
        "outputs",
    ),
}


def __getattr__(name: str) -> Any:
    if name not in _OFFLINE:
        raise AttributeError(f"module 'ember' has no attribute {name!r}")
    return getattr(import_module(f"{_ROOM}.{_OFFLINE[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_OFFLINE])
