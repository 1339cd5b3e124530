"""What a boot loads ahead is what a step launches; run by test_launch.py, without a GPU and without launching anything.

    python tests/kernels/touched_kernels.py

prints the number of binaries of each family.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import torch

from ember.engine.core.gpu import touch
from ember_kernels import compile as kernels
from tests.kernels.family_launches import LIMITS, SHAPES, describe, run_texts
from tests.kernels.published_models import published_encoders
from tests.support.empty_models import EmptyEngine, no_products, with_layers

FAMILIES = ("llama", "qwen3", "mistral_window", "opt", "ministral", "gemma3", "cohere")
WITH_STATES = ("qwen3_5", "bamba", "falcon_h1_norm_first", "lfm2", "lfm3", "mamba")  # whose kernels only they import
STATES = ("convolution", "gated_norm", "selective_scan", "state_step", "delta_chunks", "ssd_chunks", "state_chunks")
STEPS = ("step", "step_update", "sampling_kernels")  # which are not in layers


def in_layers(launched: set[str]) -> set[str]:
    """The names of the kernels that layers launch."""
    names = {json.loads(each)["name"] for each in launched}
    return {name for name in names if name.split(".")[1] not in STEPS}


def fail(message: str, *reasons: str) -> None:
    raise AssertionError(message % reasons)


def main() -> None:
    touch.log.warning = fail  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as directory:
        for variant in (*FAMILIES, *WITH_STATES):
            config = with_layers(describe(variant, SHAPES[1], Path(directory)), 3)
            with kernels.dry_run(90) as touched:
                touch.touch(config, torch.bfloat16, torch.device("cpu"), LIMITS.block_size)
            with kernels.dry_run(90) as launched, torch.inference_mode(), no_products():
                engine = EmptyEngine(config, torch.bfloat16, LIMITS)
                for num_tokens in (1, 9, 90):
                    engine.add(num_tokens)
                    engine.step()
                    engine.step()
            assert touched and touched <= launched, f"{variant}: {touched - launched}"
            missing = in_layers(launched) - in_layers(touched)
            assert not missing, f"{variant}: {missing} were not loaded ahead"
            has_states = variant in WITH_STATES
            imported = [name for name in STATES if f"ember_kernels.{name}" in sys.modules]
            assert bool(imported) == has_states, f"{variant}: {imported}"
            print(f"{len(touched)} {variant}")
    for name, config in published_encoders():
        with kernels.dry_run(90) as touched:
            touch.touch(config, torch.bfloat16, torch.device("cpu"), LIMITS.block_size)
        with kernels.dry_run(90) as launched, torch.inference_mode(), no_products():
            run_texts(config, torch.bfloat16)
        assert touched and touched <= launched, f"{name}: {touched - launched}"
        print(f"{len(touched)} {name}")


if __name__ == "__main__":
    main()
