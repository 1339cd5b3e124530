"""transformers' `generate` with sdpa attention."""

from __future__ import annotations

import torch
from timing import measure, request
from transformers import AutoModelForCausalLM


def main() -> None:
    asked = request()
    torch.set_num_threads(asked["threads"])
    model = AutoModelForCausalLM.from_pretrained(
        asked["directory"], dtype=torch.bfloat16, attn_implementation="sdpa"
    ).eval()

    @torch.inference_mode()
    def generate(prompts: list[list[int]], tokens: int) -> None:
        ids = torch.tensor(prompts)
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
        )

    measure(asked, generate)


main()
