"""What a boot loads ahead is what a step launches; run by test_launch.py, without a GPU and without launching anything.

    python tests/kernels/touched_kernels.py

prints the number of binaries of each family.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from ember.engine.core.gpu.touch import touch
from ember_kernels import compile as kernels
from tests.kernels.family_launches import LIMITS, SHAPES, describe
from tests.support.empty_models import EmptyEngine, no_products, with_layers

FAMILIES = ("llama", "qwen3", "mistral_window", "opt", "ministral")


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        for variant in FAMILIES:
            config = with_layers(describe(variant, SHAPES[1], Path(directory)), 3)
            with kernels.dry_run(90) as touched:
                touch(config, torch.bfloat16, torch.device("cpu"), LIMITS.block_size)
            with kernels.dry_run(90) as launched, torch.inference_mode(), no_products():
                engine = EmptyEngine(config, torch.bfloat16, LIMITS)
                for num_tokens in (1, 9, 90):
                    engine.add(num_tokens)
                    engine.step()
                    engine.step()
            assert touched and touched <= launched, f"{variant}: {touched - launched}"
            print(f"{len(touched)} {variant}")


if __name__ == "__main__":
    main()
