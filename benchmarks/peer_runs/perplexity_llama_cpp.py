"""llama.cpp's perplexity of some tokens with a GGUF file.

Its argument is a JSON object: `file`, `tokens`, `threads`. It prints a line "PERPLEXITY <number>".
"""

from __future__ import annotations

import json
import sys

import llama_cpp
import numpy as np


def main() -> None:
    asked = json.loads(sys.argv[1])
    tokens = asked["tokens"]
    model = llama_cpp.Llama(
        model_path=asked["file"],
        n_ctx=len(tokens),
        n_threads=asked["threads"],
        n_threads_batch=asked["threads"],
        logits_all=True,
        verbose=False,
    )
    model.eval(tokens)
    logits = np.array(model.scores[: len(tokens) - 1], dtype=np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    logprobs = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    chosen = logprobs[np.arange(len(tokens) - 1), tokens[1:]]
    print(f"PERPLEXITY {np.exp(-chosen.mean()):.6f}")


if __name__ == "__main__":
    main()
