"""vLLM's CPU build, in process; eager, or compiled where VLLM_PEER_COMPILE is set."""

from __future__ import annotations

import os

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "3")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

from timing import measure, request
from vllm import LLM, SamplingParams


def main() -> None:
    asked = request()
    model = LLM(
        model=asked["directory"],
        dtype="bfloat16",
        max_model_len=asked["prompt"] + asked["output"] + 16,
        max_num_seqs=max(asked["batches"]),
        enforce_eager=not os.environ.get("VLLM_PEER_COMPILE"),
        enable_prefix_caching=False,
        disable_log_stats=True,
    )

    def generate(prompts: list[list[int]], tokens: int) -> None:
        sampling = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        model.generate([{"prompt_token_ids": prompt} for prompt in prompts], sampling, use_tqdm=False)

    measure(asked, generate)


if __name__ == "__main__":
    main()
