"""Steps of every family at real sizes, run by test_compile.py without a GPU and without launching anything.

    python tests/kernels/family_launches.py CAPABILITY ...

prints each binary that the GPU's runner, or an encoder, asks for and no module lists in its specialisations, so that
the image lacks it. The first capability is tried with every family, the others with Llama in every shape and every
dtype, but not each with each. Families are those of `tests/engine_models/tiny.py`: a new one there is covered here.
Published models, plain and quantised, are those of `published_models.py`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from triton.runtime.jit import JITFunction

from ember.engine.core.limits import EngineLimits
from ember.engine.description.config import DecoderConfig
from ember.engine.description.operator_sets import TRITON
from ember.engine.description.read_config import load_config
from ember_kernels import compile as kernels
from tests.engine_models.tiny import COVERING, VARIANTS, config_class, model_class, tiny_fields
from tests.engine_models.tiny_encoders import NO_CACHE, batch_of
from tests.kernels.published_models import published_encoders, published_models
from tests.support.empty_models import EmptyEngine, Layout, empty_decoder, empty_launcher, no_products, with_layers

# hidden, intermediate, heads, kv_heads, vocabulary
SHAPES = (
    (4096, 14336, 32, 8, 128256),  # Llama 3.1 8B
    (576, 1536, 9, 3, 49152),  # SmolLM2 135M: head_dim 64
    (2560, 6912, 32, 32, 50304),  # StableLM 3B: head_dim 80, one query head for each key
    (3072, 8192, 32, 32, 32011),  # Phi-3 mini: head_dim 96; a vocabulary of an odd size
    (6144, 23040, 48, 2, 151552),  # GLM-4 32B: 24 query heads for each key
    (2048, 16384, 8, 1, 256000),  # Gemma 2B: head_dim 256
    (12288, 33792, 96, 8, 256000),  # Command R+
    (3584, 18944, 28, 4, 152064),  # Qwen2.5 7B
)
MULTI_QUERY = {  # one KV head, for which a shape's number of query heads has to be that of a published model
    "falcon": (4544, 18176, 71, 71, 65024),  # Falcon 7B
    "gpt_bigcode": (6144, 24576, 48, 48, 49152),  # StarCoder
}
PUBLISHED_HEADS = {  # families whose attention has a feature that is compiled for published sizes of heads alone
    "gpt_oss": (4096, 2880, 64, 8, 201088),
    "granite_swa": (2560, 8192, 20, 4, 100352),
    "granitemoe_swa": (2560, 8192, 20, 4, 100352),
    "llama4": (5120, 8192, 40, 8, 202048),
    "falcon_alibi": (2048, 8192, 32, 32, 50304),
    "bloom": (2560, 10240, 32, 32, 250880),
    "bloom_normed": (4096, 16384, 32, 32, 250880),
    "mpt": (4096, 16384, 32, 32, 50432),
}
GEMMA4 = {  # whose heads have published sizes alone
    "gemma4": (5376, 21504, 32, 16, 262144),
    "gemma4_small": (1536, 6144, 8, 1, 262144),
    "gemma4_moe": (2816, 2112, 16, 8, 262144),
    "gemma4_unified": (3840, 15360, 16, 8, 262144),
}
# Published sizes of latent attention. Youtu's tiny model alone has pairs by halves.
LATENTS = {"kv_lora_rank": 512, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}
MINICPM3 = {"kv_lora_rank": 256, "q_lora_rank": 768, "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64}
# Published sizes of mixers with a state.
STATES = {"linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_num_key_heads": 16}
STATES |= {"linear_num_value_heads": 32, "mamba_d_state": 128, "mamba_d_head": 64, "state_size": 128}
STATES |= {"linear_conv_kernel_dim": 4, "conv_L_cache": 3}
STATES |= {"ssm_state_size": 128, "mamba_head_dim": 80, "mamba_num_heads": 126}
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# Head sizes, and query heads for each key head, of models with soft caps in attention.
CAPPED = tuple(product((128, 256), range(1, 9)))
ALL_SHAPES = ("llama", "qwen3", "mistral_window", "opt")  # the others take turns
LIMITS = EngineLimits(block_size=16, num_blocks=64, max_num_seqs=20, max_num_batched_tokens=96, max_model_len=4096)


def describe(variant: str, shape: tuple[int, ...], directory: Path) -> DecoderConfig:
    """The first layers of a family's decoder with real sizes."""
    name, fields = tiny_fields(variant)
    shape = (MULTI_QUERY | GEMMA4 | PUBLISHED_HEADS).get(variant, shape)
    if name == "CodeGen" and shape[2] % 4:
        shape = SHAPES[0]
    hidden, intermediate, heads, kv_heads, vocabulary = shape
    sizes = {"vocab_size": vocabulary, "head_dim": hidden // heads}
    if variant in GEMMA4:
        sizes |= {"head_dim": 256, "global_head_dim": 512, "hidden_size_per_layer_input": 256}
        sizes |= {"vocab_size_per_layer_input": vocabulary, "num_global_key_value_heads": max(kv_heads // 4, 1)}
        sizes["hidden_size_per_layer_input"] *= bool(fields.get("hidden_size_per_layer_input"))
    sizes |= dict.fromkeys(("hidden_size", "n_embd", "d_model"), hidden)
    sizes |= dict.fromkeys(("num_attention_heads", "n_head", "n_heads"), heads)
    sizes |= dict.fromkeys(("num_key_value_heads", "num_kv_heads"), kv_heads)
    sizes |= dict.fromkeys(("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner"), intermediate)
    sizes |= MINICPM3 if name == "MiniCPM3" else LATENTS
    sizes["rope_interleave"] = True
    sizes |= dict.fromkeys(("shared_expert_intermediate_size", "moe_shared_expert_intermediate_size"), 512)
    sizes |= STATES | {"mamba_d_ssm": 2 * hidden}  # the inner size
    sizes |= dict.fromkeys(("mamba_n_heads", "num_heads"), 2 * hidden // STATES["mamba_d_head"])
    if name in ("Jamba", "Mamba", "FalconMamba"):
        sizes |= {"mamba_d_state": 16, "state_size": 16, "conv_kernel": 4, "expand": 2}
    if name == "Mamba2":
        sizes["head_dim"] = 64
    fields |= {field: size for field, size in sizes.items() if field in fields}
    if fields.get("rope_parameters", {}).get("rope_type") == "longrope":
        count = int(hidden // heads * fields.get("partial_rotary_factor", 1.0)) // 2
        factors = {"short_factor": [1.0] * count, "long_factor": [2.0] * count}
        fields["rope_parameters"] = {**fields["rope_parameters"], **factors}
    config = config_class(name)(**fields, architectures=[model_class(name)])
    (directory / "config.json").write_text(json.dumps(config.to_dict()))
    return load_config(directory)


def models() -> Iterator[tuple[str, DecoderConfig, torch.dtype]]:
    with tempfile.TemporaryDirectory() as directory:
        for number, variant in enumerate(VARIANTS):
            for (i, shape), (j, dtype) in product(enumerate(SHAPES), enumerate(DTYPES)):
                if (
                    variant in MULTI_QUERY and dtype == torch.float32
                ):  # its tiles are not listed: nobody serves these so
                    continue
                if dtype != torch.bfloat16 and variant not in (*COVERING, *MULTI_QUERY):
                    continue
                if variant in ALL_SHAPES or (number + j) % len(SHAPES) == i:
                    config = describe(variant, shape, Path(directory))
                    if not config.shared_kv_layers:  # otherwise the last ones are of their own kind
                        config = with_layers(config, min(config.num_layers, 3))
                    group = config.num_heads // config.num_kv_heads
                    if config.attention_soft_cap is not None and (config.head_dim, group) not in CAPPED:
                        config = with_layers(describe(variant, SHAPES[-1 - j], Path(directory)), 3)
                    lacking = TRITON.lacking(config)
                    own_experts = config.experts is None or ("experts" not in lacking and dtype != torch.float32)
                    if (
                        not {"attend", "attend_latents"} & lacking.keys() and own_experts
                    ):  # otherwise another runner executes the steps
                        yield f"{variant} {shape} {dtype}", config, dtype


def expand(config: DecoderConfig, dtype: torch.dtype, layout: Layout | None) -> None:
    """A prompt in chunks whose keys are expanded."""
    engine = EmptyEngine(config, dtype, replace(LIMITS, max_num_batched_tokens=512, num_blocks=128), layout)
    engine.add(1030)
    for _ in range(2):
        engine.step()


def run(config: DecoderConfig, dtype: torch.dtype, has_options: bool, layout: Layout | None = None) -> None:
    """Prompts in chunks, decodes alone and beside prompts, and the recording of graphs: of all with the options."""
    engine = EmptyEngine(config, dtype, LIMITS, layout)
    engine.add(1)
    engine.step()
    engine.step()
    engine.add(70)
    engine.add(130)
    if has_options:
        engine.add(20, logprobs=3, top_k=7, top_p=0.9, min_p=0.1)
        engine.add(5, repetition_penalty=1.2, frequency_penalty=0.3, logit_bias={5: 1.0}, allowed_token_ids=[5, 6])
        engine.add(5, prompt_logprobs=1, bad_words=[[5, 6], [7]])
    for _ in range(4):
        engine.step()
    if config.latent is not None:
        expand(config, dtype, layout)
    while engine.runner.record_next(is_idle=True) and has_options:
        pass
    engine.step()


def run_texts(config: DecoderConfig, dtype: torch.dtype) -> None:
    """Steps of an encoder: one text, short ones alone, and short ones beside long ones."""
    model = empty_decoder(config, dtype)
    for lengths in ([1], [3, 9, 20], [2, 2, 90, 300]):
        model.states(batch_of([[3] * length for length in lengths]), NO_CACHE)


def shortened(identity: str) -> str:
    """The parts of an identity that a list of specialisations has, without its options."""
    data = json.loads(identity)
    return " ".join(str(data[key]) for key in ("name", "signature", "constant_keys", "constant_vals", "attrs_vals"))


@contextmanager
def ask_once() -> Iterator[set[str]]:
    """Ask for each binary once inside a dry run: later launches find one that does nothing, by the launcher's own keys.
    Yields a set that collects the names of the kernels that are launched."""
    names: set[str] = set()
    compile_for: Any = JITFunction._do_compile

    def pretend(self: Any, key: Any, signature: Any, device: int, *rest: Any) -> Any:
        assert compile_for(self, key, signature, device, *rest) is None  # the dry run has noted its identity
        run = empty_launcher(lambda *given: names.add(self.__name__))
        binary = SimpleNamespace(run=run, launch_metadata=lambda *a: None, function=0, packed_metadata=())
        self.device_caches[device][0][key] = binary
        return binary

    JITFunction._do_compile = pretend
    try:
        yield names
    finally:
        JITFunction._do_compile = compile_for


def main() -> None:
    described: list[tuple[str, DecoderConfig, torch.dtype, Layout | None]] = [(*model, None) for model in models()]
    described += published_models()
    encoders = list(product(published_encoders(), DTYPES))
    llamas = [model for model in described if model[0].startswith("llama ")]  # shapes with each dtype
    by_turns = [model for i, model in enumerate(llamas) if (i // len(DTYPES) + i) % len(DTYPES) == 0]
    first, *others = map(int, sys.argv[1:])
    for capability in (first, *others):
        listed = kernels.listed(capability)
        told: set[str] = set()

        def tell_new(name: str, capability: int = capability, listed: set[str] = listed, told: set[str] = told) -> None:
            for identity in sorted(asked - listed - told):
                print(f"{name} on sm_{capability}: {shortened(identity)}")
                told.add(identity)

        with kernels.dry_run(capability) as asked, ask_once() as launched, torch.inference_mode(), no_products():
            for name, config, dtype, layout in described if capability == first else by_turns:
                launched.clear()
                run(config, dtype, name.startswith("llama "), layout)
                assert launched, name
                tell_new(name)
            for (name, config), dtype in encoders:
                if dtype != torch.bfloat16 and capability != first:
                    continue
                launched.clear()
                run_texts(config, dtype)
                assert any("text_attention" in kernel for kernel in launched), name
                tell_new(f"{name} {dtype}")


if __name__ == "__main__":
    main()
