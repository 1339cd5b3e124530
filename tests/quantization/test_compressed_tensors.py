"""Checkpoints that the package compressed-tensors compressed, and weights that it restored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.mx_utils import decompress_mx_scale
from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.lifecycle.forward import dequantize
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam
from compressed_tensors.utils.match import match_targets
from torch import Tensor

from ember.engine.errors import ModelError
from ember.engine.layers.float8_linear import Float8Linear
from ember.engine.layers.joined import JoinedLinear
from ember.engine.layers.table_linear import TableLinear
from ember.engine.loading.load import load_decoder, read_model_config
from ember.engine.quantization import expressions
from ember.engine.quantization.compressed_tensors import Group, group_of, read_groups
from ember.engine.quantization.ignored import Ignored
from tests.engine_models.tiny import make_tiny, rewrite_config
from tests.quantization.checkpoints import Store, check_answers, check_weights, is_matrix, load, matrices, twins

SIZES: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
FLOAT8 = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": False}
FORMS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "a scale for the tensor": ("float-quantized", {**FLOAT8, "strategy": "tensor"}, True),
    "a scale for each channel": ("float-quantized", {**FLOAT8, "strategy": "channel"}, True),
    "blocks": ("float-quantized", {**FLOAT8, "strategy": "block", "block_structure": [32, 16]}, True),
    "weights alone": ("naive-quantized", {**FLOAT8, "strategy": "channel"}, False),
    "nvfp4": ("nvfp4-pack-quantized", {**FLOAT8, "num_bits": 4, "strategy": "tensor_group", "group_size": 16}, True),
    "mxfp4": ("mxfp4-pack-quantized", {**FLOAT8, "num_bits": 4, "strategy": "group", "group_size": 32}, False),
}


def qparams(weight: Tensor, args: QuantizationArgs) -> dict[str, Tensor]:
    """The scales of a weight, by the package's own arithmetic."""
    rows = len(weight)
    if args.strategy == "tensor":
        groups = weight.reshape(1, -1)
    elif args.strategy == "channel":
        groups = weight
    elif args.strategy == "block":
        height, width = args.block_structure
        groups = weight.unflatten(0, (-1, height)).unflatten(2, (-1, width)).transpose(1, 2).flatten(2)
    else:
        groups = weight.unflatten(1, (-1, args.group_size))
    found = {}
    least, most = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    if args.strategy == "tensor_group":
        found["weight_global_scale"] = generate_gparam(weight.min(), weight.max())
    scale, _ = calculate_qparams(least, most, args, found.get("weight_global_scale"))
    shape = {"tensor": (1,), "channel": (rows, 1)}.get(args.strategy, groups.shape[:-1])
    return {"weight_scale": scale.reshape(shape), **found}


def compressed(form: str, weights: dict[str, Any], dtype: torch.dtype = torch.float32) -> Store:
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**weights))
    compressor = BaseCompressor.get_value_from_registry(form)

    def store(name: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        module = name.removesuffix("weight")
        parameters = qparams(weight, scheme.weights)
        if dtype != torch.float32 and weights["num_bits"] == 8:
            parameters["weight_scale"] = parameters["weight_scale"].to(dtype)
        made = compressor.compress({"weight": weight, **parameters}, scheme)
        return {module + key: tensor for key, tensor in made.items()}, restored(made, scheme)

    return store


def restored(made: dict[str, Tensor], scheme: QuantizationScheme) -> Tensor:
    """The weight, by the package's arithmetic in float32: for 4 bits its own `decompress` computes in bfloat16."""
    wide = {key: tensor.float() if tensor.dtype == torch.bfloat16 else tensor for key, tensor in made.items()}
    if "weight_packed" not in wide:
        weight = BaseCompressor.get_value_from_registry("naive-quantized").decompress(wide, scheme)["weight"]
    else:
        packed, scale = wide["weight_packed"], wide["weight_scale"]
        scale = decompress_mx_scale(scale) if scale.dtype == torch.uint8 else scale
        numbers = unpack_fp4_from_uint8(packed, packed.shape[0], 2 * packed.shape[1], dtype=torch.float32)
        weight = dequantize(
            numbers,
            scale.float(),
            args=scheme.weights,
            global_scale=wide.get("weight_global_scale"),
            dtype=torch.float32,
        )
    assert isinstance(weight, Tensor)
    return weight


def config(form: str, weights: dict[str, Any], rounds_inputs: bool, **fields: Any) -> dict[str, Any]:
    inputs = {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True, "symmetric": True}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs if rounds_inputs else None}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        **fields,
    }


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("variant", ["llama_mha", "phi3", "qwen3_moe"])
def test_weights_are_what_the_package_restores(variant: str, form: str, tmp_path: Path) -> None:
    fields: dict[str, Any] = {**SIZES, "moe_intermediate_size": 32} if variant == "qwen3_moe" else SIZES
    store = compressed(*FORMS[form][:2])
    model = check_weights(*twins(variant, tmp_path, config(*FORMS[form]), store, **fields), rtol=1e-6)
    layouts = {type(linear) for linear in matrices(model)[:-1]}
    assert layouts == {TableLinear if "fp4" in form else Float8Linear}
    linear = matrices(model)[0]
    if isinstance(linear, Float8Linear):
        assert linear.quantises_inputs == FORMS[form][2]


def test_scales_in_bfloat16(tmp_path: Path) -> None:
    form = FORMS["a scale for each channel"]
    check_weights(*twins("llama", tmp_path, config(*form), compressed(*form[:2], torch.bfloat16), **SIZES))


@pytest.mark.parametrize("form", ["a scale for each channel", "nvfp4", "mxfp4"])
@pytest.mark.parametrize("variant", ["llama", "llama_tied", "qwen3_moe"])
def test_answers_are_those_of_the_restored_weights(variant: str, form: str, tmp_path: Path) -> None:
    fields: dict[str, Any] = {**SIZES, "moe_intermediate_size": 32} if variant == "qwen3_moe" else SIZES
    check_answers(*twins(variant, tmp_path, config(*FORMS[form]), compressed(*FORMS[form][:2]), **fields))


def test_groups_of_different_formats_and_modules_that_are_ignored(tmp_path: Path) -> None:
    """Attention in float8 but for the values, the MLP in nvfp4 but for the last layer's."""
    _, float8, _ = FORMS["a scale for each channel"]
    _, fp4, _ = FORMS["nvfp4"]
    groups = {
        "attention": {"targets": ["re:.*self_attn\\..*"], "weights": float8, "format": "float-quantized"},
        "rest": {"targets": ["Linear"], "weights": fp4, "format": "nvfp4-pack-quantized"},
    }
    stores = compressed("float-quantized", float8), compressed("nvfp4-pack-quantized", fp4)

    def store(name: str, weight: Tensor) -> tuple[Any, Tensor]:
        return stores["mlp" in name](name, weight)

    def is_stored(name: str) -> bool:
        return is_matrix(name) and "v_proj" not in name and "layers.2.mlp" not in name

    ignore = ["lm_head", "re:.*v_proj", "model.layers.2.mlp.gate_proj", "re:model.layers.2.mlp.(up|down)_proj"]
    quantization = config("mixed-precision", float8, False, config_groups=groups, ignore=ignore)
    twin = twins("llama", tmp_path, quantization, store, is_stored, **SIZES)
    model = check_weights(*twin, rtol=1e-6)
    first, last = model.parts.blocks[0], model.parts.blocks[2]
    assert isinstance(first.attention.qkv, JoinedLinear) and isinstance(first.attention.output, Float8Linear)
    assert [type(linear) for block in (first, last) for linear in list(block.matrices())[2:]][:2] == [TableLinear] * 2
    assert not isinstance(list(last.matrices())[2], TableLinear)
    check_answers(*twin)


def groups_of(*targets: list[str]) -> list[Group]:
    quantization = {
        "config_groups": {str(number): {"targets": each, "weights": FLOAT8} for number, each in enumerate(targets)}
    }
    return read_groups(quantization)


@pytest.mark.parametrize(
    ("targets", "module", "group"),
    [
        ([["Linear"]], "model.layers.0.mlp.up_proj", 0),
        ([["re:.*mlp.*"], ["Linear"]], "model.layers.0.self_attn.q_proj", 1),
        ([["Linear"], ["re:.*mlp.*"]], "model.layers.0.mlp.up_proj", 1),
        ([["re:.*"], ["model.layers.0.mlp.up_proj"]], "model.layers.0.mlp.up_proj", 1),
        ([["re:.*mlp.*"], ["re:.*layers.*"]], "model.layers.0.mlp.up_proj", 1),  # the first in alphabetical order
        ([["re:.*self_attn.*"]], "model.layers.0.mlp.up_proj", None),
        ([["LlamaAttention"]], "model.layers.0.mlp.up_proj", None),
    ],
)
def test_a_modules_group_is_the_one_that_the_package_finds(
    targets: list[list[str]], module: str, group: int | None
) -> None:
    ours = group_of(module, groups_of(*targets))
    assert (None if ours is None else int(ours.name)) == group
    by_target = {target: number for number, each in enumerate(targets) for target in each}
    theirs = match_targets(module, torch.nn.Linear(2, 2), by_target)
    assert (by_target[theirs[0]] if theirs else None) == group


UNBOUNDED = {
    "(a+)+$",
    "a?" * 40 + "b",
    "(x|xy)*z",
    ".*a" * 9,
    "(?P<n>[)]a*)(?#c){2,}",
    "(?:[]|]|[|])*b",
    r"(?:(?=\()|\))+",
    "(?x: a* )",
    "(?x)a b",
    "(?:(a*)*){0}(b*)*c",
}
BOUNDED = {
    r"model\.layers\.(?!0)(\d|1\d)\.(?:q|k|v)_proj",
    r".*[*+(|\]]\(+\*?",
    "(?#(a*)(?i:a|b)*{}",
    r"(?P<n>a{,3})(?(n)b|c)(?P=n)(?<!x)\Z",
    "x{2}[^]a]*?(?>y)?",
}


@pytest.mark.parametrize("expression", sorted(BOUNDED))
def test_expressions_with_a_bound_are_taken(expression: str) -> None:
    assert "?" not in Ignored(["re:" + expression], "ignore")


@pytest.mark.parametrize("target", sorted("re:" + each for each in UNBOUNDED))
def test_expressions_without_a_bound_are_refused(target: str) -> None:
    with pytest.raises(ModelError, match="a regular expression that may take too long"):
        groups_of([target])
    with pytest.raises(ModelError, match=r"ignore has 're:.*may take too long"):
        Ignored([target], "ignore")


def test_the_time_of_expressions_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    ignored = Ignored(["re:.*a.*b.*c"], "ignore")
    assert "model.a.b.c" in ignored and "model" not in ignored
    monkeypatch.setattr(expressions, "MAX_SECONDS", 0.0)
    with pytest.raises(ModelError, match="ignore has regular expressions that take more than 0 seconds"):
        _ = "model" in ignored


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        (
            {"config_groups": {"a": {"targets": ["re:.*mlp.*"], "weights": {**FLOAT8, "strategy": "channel"}}}},
            r"q_proj is quantized, but no group of quantization_config.config_groups has it .*: \['re:.*mlp",
        ),
        ({"config_groups": {}}, r"config_groups is \{\}: it must be an object of groups"),
        ({"config_groups": {"a": {"targets": "Linear"}}}, "config_groups.a.targets is 'Linear': it must be names"),
        ({"config_groups": {"a": {"targets": ["Linear"]}}}, "config_groups.a.weights is None: it must be an object"),
        ({"config_groups": {"a": {"targets": ["re:("], "weights": {}}}}, "which is no regular expression"),
        (
            {"sparsity_config": {"format": "sparse-24-bitmask"}},
            "sparsity_config is .*'sparse-24-bitmask'.*: its format must be dense",
        ),
        ({"sparsity_config": ["sparse-24-bitmask"]}, "sparsity_config is .*: its format must be dense"),
        (
            {"transform_config": {"config_groups": {"R3": {}}}},
            "transform_config is .*R3.*: transforms are not supported",
        ),
        ({"transform_config": ["R3"]}, "transform_config is .*R3.*: transforms are not supported"),
        ({"ignore": "lm_head"}, "quantization_config.ignore is 'lm_head': it must be a list of names of modules"),
        (
            {"config_groups": {"a": {"targets": ["Linear"], "weights": {**FLOAT8, "num_bits": 6}}}},
            "config_groups.a.weights .*'num_bits': 6.* are not supported: they may be",
        ),
        (
            {"config_groups": {"a": {"targets": ["Linear"], "weights": {**FLOAT8, "strategy": "block"}}}},
            "block_structure None: it must be two positive numbers",
        ),
    ],
)
def test_fields_that_cannot_be_served(fields: dict[str, Any], error: str, tmp_path: Path) -> None:
    form = FORMS["a scale for each channel"]
    quantized, _ = twins("llama", tmp_path, config(*form, **fields), compressed(*form[:2]), **SIZES)
    with pytest.raises(ModelError, match=error):
        load(quantized)


def test_rows_that_are_no_blocks_are_named(tmp_path: Path) -> None:
    directory = make_tiny("llama", tmp_path, hidden_size=72, head_dim=16)
    rewrite_config(directory, quantization_config=config(*FORMS["nvfp4"]))

    with pytest.raises(ModelError, match="has 72 inputs, which are not blocks of 16: nvfp4 cannot have them"):
        load_decoder(
            directory,
            read_model_config(directory),
            dtype=torch.float32,
            device=torch.device("cpu"),
            load_format="dummy",
        )
