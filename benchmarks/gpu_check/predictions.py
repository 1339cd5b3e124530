"""What a review of the compiled kernels expected of an H200 before any GPU had run them, beside what is measured.

Figures that differ much from these show where the review, or the code, is wrong.
"""

from __future__ import annotations

from typing import Any

# (model, part, batch or prompt): the expectation.
EXPECTED: dict[tuple[str, str, int | None], str] = {
    ("llama-3.1-8b", "decode", 1): "195-205 tokens/s, 69-72 % of the limit (target 80 %)",
    ("llama-3.1-8b", "decode", 64): "8,500-8,800 tokens/s (target 75 %)",
    ("llama-3.1-8b", "decode", 256): "15,000 tokens/s (target 65 %)",
    ("llama-3.1-8b", "prefill", 8192): "43,000-46,000 tokens/s (target 65 % of the matmul rate)",
    ("llama-3.1-8b", "boot", None): "2.6-3.2 s (target 3 s)",
    ("qwen3-0.6b", "decode", 1): "about 1,000 tokens/s (target 900)",
}
KERNELS = {
    "decode_attention": "80-88 % of the copy bandwidth at 256 x 1k",
    "prefill": "380-450 TFLOP/s, 46-50 % of the matmul rate",
    "text_attention": "250-380 TFLOP/s at 64 x 512 with heads of 64; 2-10 times torch with mixed lengths",
    "rope_cache": "8192 tokens near 47 us",
    "add + rms_norm": "85-90 % of a copy",
    "silu_and_mul": "85-90 % of a copy",
    "small_gemm": "85-90 %, faster than torch for N <= 3072",
    "int_gemm": "70-85 % up to 16 rows (target 70 % with one), twice torch's bfloat16 at 4 bits; never slower than it",
    "float8_gemm": "1.5 times torch's bfloat16 up to 16 rows (target 1.2 up to 64)",
    "block_gemm": "60-80 % up to 16 rows in Q4_K and Q8_0, 50-70 % in Q6_K; never slower than torch's bfloat16",
}


def expected(row: dict[str, Any]) -> str:
    """The expectation for a row; empty where there is none."""
    if row["part"] == "kernels":
        return KERNELS.get(row["kernel"], "")
    size = row.get("batch", row.get("prompt"))
    return EXPECTED.get((row.get("model", ""), row["part"], size), "")
