"""Models of GGUF blocks on the C library's operators: in one call and in parts, beside torch's on the same weights."""

from __future__ import annotations

import pytest
import torch

from ember.engine.description.operator_choice import decide
from ember.engine.layers.block_linear import BlockLinear
from ember.engine.layers.float8_linear import Float8Linear
from ember.engine.layers.joined import JoinedLinear
from ember.engine.layers.linear import Linear
from ember.engine.layers.mlp import MLP
from ember.engine.layers.sparse_table_linear import SparseTableLinear
from ember.engine.layers.table_linear import TableLinear
from ember.engine.models.decoder import Decoder
from tests.cpu_kernels.test_floats import layer_of
from tests.cpu_kernels.test_integers import integers
from tests.cpu_kernels.test_native_forward import build, error  # noqa: F401
from tests.engine_models.paged import Paged
from tests.engine_models.test_parity import chunked, decode, load, mixed, together, whole
from tests.engine_models.test_parity import tokens as sequences_of_tokens
from tests.engine_models.tiny import make_tiny
from tests.support.gguf_blocks import random_blocks
from tests.support.operators import choose_for

SIZES = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "dtype": torch.bfloat16}
SPREAD = {
    "Q4_K": 1e-4,
    "Q6_K": 2e-5,
    "Q8_0": 3e-4,
    "Q5_0": 2e-3,
    "IQ4_XS": 1e-5,
    "Q2_K": 1e-3,
}  # scales of small weights


def blocks_of(linear: Linear, *names: str) -> Linear:
    """Random blocks of these types, the rows of the layer in equal parts, in place of the layer."""
    rows = linear.out_features // len(names)
    parts = [
        BlockLinear(random_blocks(name, rows, linear.in_features, i, SPREAD[name]), type=name, dtype=torch.bfloat16)
        for i, name in enumerate(names)
    ]
    return parts[0] if len(parts) == 1 else JoinedLinear(parts, linear.bias)


def integers_of(linear: Linear) -> Linear:
    """Random integers in an order of their own, as GPTQ with `desc_act` has them, in place of the layer."""
    columns, chance = linear.in_features, torch.Generator().manual_seed(0)
    made = integers(linear.out_features, columns, 4, True, 64, torch.float16)
    made.scales *= 0.05
    made.order = torch.randperm(columns, generator=chance).int()
    return made


def floats_of(linear: Linear, kind: str) -> Linear:
    """Random float8 or codes with tables, in place of the layer."""
    made = layer_of(kind, linear.out_features, linear.in_features)
    factor = 0.02 / made.weight.float().std()
    if isinstance(made, SparseTableLinear):
        scaled = [made.table.table, made.values]
    elif isinstance(made, TableLinear) and made.factors is not None:
        scaled = [made.factors]
    elif isinstance(made, TableLinear) and made.is_e2m1:
        made.scales.view(torch.uint8).add_(int(factor.log2().round()))
        scaled = []
    else:
        assert isinstance(made, TableLinear | Float8Linear)
        scaled = [made.scales]
    for tensor in scaled:
        tensor *= factor
    made.bias = linear.bias
    return made


def with_floats(model: Decoder) -> None:
    for number, block in enumerate(model.parts.blocks):
        attention = block.attention
        attention.qkv = floats_of(attention.qkv, "fp8-row" if number % 2 else "fp8-block")
        attention.output = floats_of(attention.output, "sparse" if number % 2 else "nvfp4")
        for mlp in block.mlps():
            mlp.up, mlp.down = floats_of(mlp.up, "mxfp4"), floats_of(mlp.down, "nf4")
    model.parts.head = model.parts.embedding.tokens = floats_of(model.parts.head, "nvfp4")


def with_blocks(model: Decoder) -> None:
    for number, block in enumerate(model.parts.blocks):
        attention = block.attention
        attention.qkv = blocks_of(attention.qkv, *(("Q4_K", "Q6_K") if number % 2 else ("Q4_K", "Q8_0")))
        attention.output = integers_of(attention.output) if number % 2 else blocks_of(attention.output, "Q5_0")
        assert isinstance(block.mlp, MLP)
        block.mlp.up, block.mlp.down = blocks_of(block.mlp.up, "Q4_K", "IQ4_XS"), blocks_of(block.mlp.down, "Q2_K")
    model.parts.head = model.parts.embedding.tokens = blocks_of(model.parts.head, "Q6_K")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return {
        family: make_tiny(family, tmp_path_factory.mktemp(family), **SIZES, **fields, tie_word_embeddings=True)
        for family, fields in (("qwen2", {}), ("qwen3", {}), ("qwen3_moe", {"moe_intermediate_size": 64}))
    }


def made(directory, activations: str = "auto", with_layers=with_blocks) -> Decoder:
    model = load(directory, torch.bfloat16)
    torch.manual_seed(1)
    with_layers(model)
    choice = choose_for(model, activations=activations)
    # An order of inputs is applied when activations are rounded.
    restored = activations == "float" and choice.reason.endswith(
        "torch restores and multiplies IntLinear with ordered inputs"
    )
    assert choice.name == "native" and ("restores" not in choice.reason or restored)
    model.ops = choice.ops
    return model


@pytest.mark.parametrize(
    ("family", "with_layers"), [("qwen2", with_blocks), ("qwen3", with_blocks), ("qwen3_moe", with_floats)]
)
def test_one_call_and_parts_are_close_to_restored_weights(family, with_layers, build, checkpoint):  # noqa: F811
    """Beside torch's operators in float32 on the weights that blocks are restored to."""
    plain = load(checkpoint[family], torch.float32)
    torch.manual_seed(1)
    with_layers(plain)
    for linear in [*(each for block in plain.parts.blocks for each in block.matrices()), plain.parts.head]:
        for part in linear.parts if isinstance(linear, JoinedLinear) else [linear]:
            part._dtype = torch.float32
            if isinstance(part, SparseTableLinear):
                part.table._dtype = torch.float32
        if linear.bias is not None:
            linear.bias = linear.bias.float()
    expected = Paged(plain, sequences_of_tokens())
    whole(expected)
    logits = expected.finish()
    for activations, limit in (("auto", 0.03), ("float", 0.015)):
        one_call, parts = (made(checkpoint[family], activations, with_layers) for _ in range(2))
        has_order = with_layers is with_blocks  # which restored weights must be in
        assert one_call.ops.max_whole_rows or (activations == "float" and has_order)
        parts.ops.max_whole_rows = 0
        for schedule in (whole, together, chunked, decode, mixed):
            for model in (one_call, parts):
                assert 0 < error(model, schedule, logits) < limit


@pytest.mark.parametrize("activations", ["auto", "float"])
def test_a_row_does_not_depend_on_its_neighbours(build, activations, checkpoint):  # noqa: F811
    model = made(checkpoint["qwen3"], activations)
    sequences = sequences_of_tokens()
    alone, beside = Paged(model, sequences), Paged(model, sequences)
    for row in range(len(sequences)):
        while alone.fed[row] < 2:
            alone.step([(row, 1)])
    for _ in range(2):
        beside.step([(row, 1) for row in range(len(sequences))])
    for one, other in zip(alone.finish(), beside.finish(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("with_layers", [with_blocks, with_floats])
def test_many_rows_may_be_restored(with_layers, build, checkpoint):  # noqa: F811
    """As on CPUs with AMX, where torch's products are faster for many rows."""
    model, restoring = (made(checkpoint["qwen2"], with_layers=with_layers) for _ in range(2))
    model.ops.max_whole_rows = restoring.ops.max_whole_rows = 0
    restoring.ops.max_quantised_rows = restoring.ops.max_product_rows = 0
    found, expected = [], []
    for decoder, logits in ((restoring, found), (model, expected)):
        paged = Paged(decoder, sequences_of_tokens())
        whole(paged)
        logits += paged.finish()
    difference = torch.cat(found) - torch.cat(expected)
    assert 0 < difference.std() / torch.cat(expected).std() < 0.03


@pytest.mark.parametrize(
    ("layouts", "name"),
    [
        ({"Linear", "BlockLinear"}, "native"),
        ({"IntLinear"}, "native"),
        ({"Float8Linear", "TableLinear", "SparseTableLinear"}, "native"),
        ({"Linear"}, "torch"),
    ],
)
def test_cpus_with_amx_run_quantised_weights_in_the_library(layouts, name, checkpoint, monkeypatch):
    monkeypatch.setattr("ember.engine.description.operator_choice.cpu_flags", lambda: frozenset({"amx_bf16"}))
    config = load(checkpoint["qwen3"], torch.bfloat16).config
    decision = decide(config, "bfloat16", "cpu", layouts=frozenset(layouts))
    assert decision.name == name
    held = f"{', '.join(sorted(layouts - {'Linear'}))} as stored"
    assert (held in decision.reason) == (name == "native")
