"""Weights that a checkpoint keeps in other forms than the decoder uses: fused, transposed, stacked, in another dtype.

The checkpoints are transformers' own, with random weights. Every case is loaded both ways: mapped, and through staging
memory, in chunks that are larger and smaller than a matrix.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from ember.engine.description.config import DecoderConfig, ExpertsConfig
from ember.engine.description.families.gpt2 import GPT2_NAMES
from ember.engine.description.families.gpt_neox import GPT_NEOX_NAMES
from ember.engine.description.families.gpt_oss import GPT_OSS_EXPERTS
from ember.engine.description.families.phi import PHI3_NAMES
from ember.engine.description.read_experts import MIXTRAL_NAMES
from ember.engine.description.rotary_decoder import LLAMA_NAMES
from ember.engine.description.weight_names import ExpertNames, WeightNames
from ember.engine.description.weight_specs import weight_specs
from ember.engine.description.weights import LinearSpec, Output, Rows, Size, Spec, Stored, TensorSpec
from ember.engine.errors import ModelError
from ember.engine.layers.linear import Linear
from ember.engine.loading import load as loading
from ember.engine.loading import mapped, reader
from ember.engine.loading.load import LoadedWeights, load_weights
from ember.engine.loading.plan import make_plan, plan_specs, read_headers
from ember.engine.quantization.plain import Plain

CPU = torch.device("cpu")
HIDDEN, INNER, HEADS, KV_HEADS, HEAD_DIM, LAYERS, EXPERTS = 48, 40, 6, 2, 8, 2, 5
SIZES: dict[str, Any] = {
    "vocab_size": 99,
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = SIZES | {"num_key_value_heads": KV_HEADS}
STACKED = ExpertNames(router="mlp.gate", gate_up="mlp.experts.gate_up_proj", down="mlp.experts.down_proj")

Load = Callable[..., LoadedWeights]


def config(names: WeightNames, **fields: Any) -> DecoderConfig:
    given: dict[str, Any] = {
        "architecture": "OwnForCausalLM",
        "vocab_size": 99,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_layers": LAYERS,
        "num_heads": HEADS,
        "num_kv_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": 64,
    }
    return DecoderConfig(**given | {"names": names} | fields)


def save(directory: Path, configuration: str, fields: dict[str, Any], dtype: torch.dtype = torch.float32) -> Any:
    """A random model of transformers, which is returned, and its state as it is in memory."""
    torch.manual_seed(0)
    made = getattr(transformers, configuration)(**fields)
    model = transformers.AutoModelForCausalLM.from_config(made).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    model.save_pretrained(directory)
    return model


@pytest.fixture(params=["mapped", "staged", "staged in small chunks"])
def load(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Loads the weights of a configuration in one of the ways."""
    monkeypatch.setattr(mapped, "SMALL_BYTES", 0)
    if request.param != "mapped":
        monkeypatch.setattr(loading, "begin_plan", lambda plan, device: None)
    if request.param == "staged in small chunks":
        monkeypatch.setattr(reader, "CHUNK_BYTES", 96)

    def carry_out(directory: Path, description: DecoderConfig, dtype: str = "float32") -> LoadedWeights:
        return load_weights(make_plan(description, read_headers(directory), dtype), CPU)

    return carry_out


def linear(weights: LoadedWeights, name: str) -> Linear:
    found = weights.by_name[name]
    assert isinstance(found, Linear)
    return found


def same(found: Linear, weight: Tensor, bias: Tensor | None = None) -> None:
    assert torch.equal(found.weight, weight)
    assert (found.bias is None) == (bias is None)
    assert bias is None or (found.bias is not None and torch.equal(found.bias, bias))


def test_query_key_value_and_gate_up_in_one_matrix(tmp_path: Path, load: Load) -> None:
    """Phi-3: all rows of query, then key, then value; gate's rows, then up's."""
    model = save(tmp_path, "Phi3Config", GROUPED)
    names = replace(LLAMA_NAMES, qkv="self_attn.qkv_proj", gate_up="mlp.gate_up_proj")
    weights = load(tmp_path, config(names))
    for index, layer in enumerate(model.model.layers):
        same(linear(weights, f"layers.{index}.qkv"), layer.self_attn.qkv_proj.weight)
        same(linear(weights, f"layers.{index}.up"), layer.mlp.gate_up_proj.weight)
        same(linear(weights, f"layers.{index}.down"), layer.mlp.down_proj.weight)
    if weights.pages is not None:
        assert weights.mapped_bytes > 0.9 * weights.report.nbytes
        assert len(linear(weights, "layers.1.qkv").rows) == 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_query_key_value_head_by_head(tmp_path: Path, load: Load, dtype: str) -> None:
    """GPT-NeoX: [heads, 3, head_dim, hidden]. The layer's own module says what belongs to whom."""
    model = save(tmp_path, "GPTNeoXConfig", SIZES)
    flags: dict[str, Any] = {"norm": "layer", "norm_bias": True, "gated_mlp": False}
    flags |= {"qkv_bias": True, "output_bias": True, "mlp_bias": True}
    weights = load(tmp_path, config(GPT_NEOX_NAMES, num_kv_heads=HEADS, **flags), dtype)
    x = torch.randn(7, HIDDEN)
    for index, layer in enumerate(model.gpt_neox.layers):
        found = linear(weights, f"layers.{index}.qkv")
        assert str(found.weight.dtype) == f"torch.{dtype}" and found.bias is not None
        with torch.no_grad():
            theirs = layer.attention.query_key_value(x).view(7, HEADS, 3, HEAD_DIM).transpose(1, 2).reshape(7, -1)
            ours = x @ found.weight.float().T + found.bias.float()
        torch.testing.assert_close(ours, theirs, rtol=0.02 if dtype == "bfloat16" else 1e-5, atol=0.3)
        if dtype == "float32":
            stored = layer.attention.query_key_value
            weight = stored.weight.view(HEADS, 3, HEAD_DIM, HIDDEN).transpose(0, 1).reshape(-1, HIDDEN)
            same(found, weight, stored.bias.view(HEADS, 3, HEAD_DIM).transpose(0, 1).reshape(-1))
            same(linear(weights, f"layers.{index}.up"), layer.mlp.dense_h_to_4h.weight, layer.mlp.dense_h_to_4h.bias)


def test_heads_in_groups(tmp_path: Path, load: Load) -> None:
    """As Falcon and InternLM 2 have it: for each key-value head its queries, its key, its value."""
    model = save(tmp_path, "Phi3Config", GROUPED)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    expected = {}
    for name in [name for name in tensors if "qkv_proj" in name]:
        expected[name] = tensors[name]
        query, key, value = tensors[name].split([HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM])
        parts = [part.view(KV_HEADS, -1, HIDDEN) for part in (query, key, value)]
        tensors[name] = torch.cat(parts, dim=1).view(-1, HIDDEN).contiguous()
    save_file(tensors, file)
    names = replace(LLAMA_NAMES, qkv="self_attn.qkv_proj", qkv_order="heads", gate_up="mlp.gate_up_proj")
    weights = load(tmp_path, config(names))
    for index in range(len(model.model.layers)):
        same(linear(weights, f"layers.{index}.qkv"), expected[f"model.layers.{index}.self_attn.qkv_proj.weight"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("is_bare", [False, True])
def test_transposed_matrices(tmp_path: Path, load: Load, dtype: str, is_bare: bool) -> None:
    """GPT-2's Conv1D stores [in, out]. Its checkpoints on the Hub are those of the bare model."""
    fields = {"vocab_size": 99, "n_embd": HIDDEN, "n_inner": INNER, "n_layer": LAYERS, "n_head": HEADS}
    fields |= {"n_positions": 64, "bos_token_id": 1, "eos_token_id": 2}
    model = save(tmp_path, "GPT2Config", fields)
    if is_bare:
        file = tmp_path / "model.safetensors"
        tensors = {name.removeprefix("transformer."): tensor for name, tensor in load_file(file).items()}
        save_file(tensors | {"h.0.attn.bias": torch.ones(4)}, file)
    flags: dict[str, Any] = {"norm": "layer", "norm_bias": True, "gated_mlp": False, "position_offset": 0}
    flags |= {"qkv_bias": True, "output_bias": True, "mlp_bias": True, "tie_word_embeddings": True}
    weights = load(tmp_path, config(GPT2_NAMES, num_kv_heads=HEADS, **flags), dtype)
    to: torch.dtype = getattr(torch, dtype)
    for index, layer in enumerate(model.transformer.h):
        pairs = {"qkv": layer.attn.c_attn, "output": layer.attn.c_proj, "up": layer.mlp.c_fc, "down": layer.mlp.c_proj}
        for name, module in pairs.items():
            found = linear(weights, f"layers.{index}.{name}")
            same(found, module.weight.t().to(to), module.bias.to(to))
            assert found.weight.is_contiguous()
    positions = weights.by_name["embed_positions"]
    assert isinstance(positions, Tensor) and torch.equal(positions, model.transformer.wpe.weight.to(to))


def moe(names: ExpertNames, **fields: Any) -> DecoderConfig:
    experts = ExpertsConfig(EXPERTS, "num_local_experts", INNER, "intermediate_size")
    return config(replace(LLAMA_NAMES, experts=names), experts=experts, **fields)


def check_experts(weights: LoadedWeights, model: Any) -> None:
    """Against the layers of transformers, which keep the matrices of all experts in one tensor."""
    for index, layer in enumerate(model.model.layers):
        up, down = linear(weights, f"layers.{index}.experts.up"), linear(weights, f"layers.{index}.experts.down")
        same(up, layer.mlp.experts.gate_up_proj.flatten(0, 1))
        same(down, layer.mlp.experts.down_proj.flatten(0, 1))
        same(linear(weights, f"layers.{index}.router"), layer.mlp.gate.weight)


def test_experts_in_tensors_of_their_own(tmp_path: Path, load: Load) -> None:
    """Mixtral's w1, w3 and w2 of each expert."""
    model = save(tmp_path, "MixtralConfig", GROUPED | {"num_local_experts": EXPERTS})
    weights = load(tmp_path, moe(MIXTRAL_NAMES))
    check_experts(weights, model)
    if weights.pages is not None:
        assert len(linear(weights, "layers.0.experts.up").rows) == 2 * EXPERTS, "used in the file"


def test_experts_in_one_tensor(tmp_path: Path, load: Load) -> None:
    """Qwen3-MoE's [experts, 2 * intermediate, hidden], as transformers has it in memory."""
    fields = GROUPED | {"num_experts": EXPERTS, "moe_intermediate_size": INNER, "head_dim": HEAD_DIM}
    model = save(tmp_path, "Qwen3MoeConfig", fields)
    save_file(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()}, tmp_path / "model.safetensors"
    )
    names = replace(LLAMA_NAMES, query_norm="self_attn.q_norm", key_norm="self_attn.k_norm", experts=STACKED)
    weights = load(tmp_path, replace(moe(STACKED), names=names, qk_norm="head"))
    check_experts(weights, model)
    if weights.pages is not None:
        assert len(linear(weights, "layers.0.experts.up").rows) == 1, "used in the file"


def test_experts_in_one_transposed_tensor_with_alternating_rows(tmp_path: Path, load: Load) -> None:
    """gpt-oss: [experts, hidden, 2 * intermediate], of which the even columns are gate's and the odd ones up's."""
    fields = GROUPED | {"num_local_experts": EXPERTS, "head_dim": HEAD_DIM}
    model = save(tmp_path, "GptOssConfig", fields)
    file = tmp_path / "model.safetensors"
    tensors = {name: t for name, t in load_file(file).items() if "sinks" not in name and "router.bias" not in name}
    save_file(tensors, file)
    weights = load(tmp_path, moe(GPT_OSS_EXPERTS, qkv_bias=True, output_bias=True, mlp_bias=True))
    for index, layer in enumerate(model.model.layers):
        experts = layer.mlp.experts
        both, bias = experts.gate_up_proj.transpose(1, 2), experts.gate_up_proj_bias
        up = torch.cat((both[:, ::2], both[:, 1::2]), dim=1).flatten(0, 1)
        up_bias = torch.cat((bias[:, ::2], bias[:, 1::2]), dim=1).flatten()
        same(linear(weights, f"layers.{index}.experts.up"), up, up_bias)
        down = experts.down_proj.transpose(1, 2).flatten(0, 1)
        same(linear(weights, f"layers.{index}.experts.down"), down, experts.down_proj_bias.flatten())


def matrix(name: str, rows: int, columns: int, **how: Any) -> Stored:
    return Stored(name, Size(rows, "rows"), Size(columns, "columns"), **how)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_any_rows_and_columns(tmp_path: Path, load: Load, dtype: str) -> None:
    """What each of two devices takes of a matrix, by rows or by columns, whichever way it is stored."""
    torch.manual_seed(0)
    tensors = {"a.weight": torch.randn(12, 10), "t.weight": torch.randn(10, 12), "s": torch.randn(3, 12, 10)}
    file = tmp_path / "model.safetensors"
    tensors |= {"a.bias": torch.randn(12), "s_bias": torch.randn(3, 12), "o.weight": torch.randn(12, 1)}
    save_file(tensors, file)
    saved = {name: tensor.to(getattr(torch, dtype)) for name, tensor in load_file(file).items()}
    plain, transposed = matrix("a", 12, 10), matrix("t", 12, 10, transposed=True)
    stack = matrix("s", 12, 10, stack=Size(3, "stack"), suffix="", bias_suffix="_bias")
    runs = Rows(1, 2, 3, 4)
    rows = [1, 2, 5, 6, 9, 10]
    cases: dict[str, tuple[LinearSpec, Tensor, Tensor | None]] = {
        "rows": (
            LinearSpec("rows", (Output(plain, Rows(6, 6)),), 10, True),
            saved["a.weight"][6:],
            saved["a.bias"][6:],
        ),
        "columns": (LinearSpec("columns", (plain.whole(),), 5, first_input=5), saved["a.weight"][:, 5:], None),
        "both": (LinearSpec("both", (Output(plain, runs),), 3, first_input=4), saved["a.weight"][rows, 4:7], None),
        "one column": (LinearSpec("one column", (plain.whole(),), 1, first_input=3), saved["a.weight"][:, 3:4], None),
        "of one column": (LinearSpec("of one column", (matrix("o", 12, 1).whole(),), 1), saved["o.weight"], None),
        "transposed": (
            LinearSpec("transposed", (Output(transposed, runs),), 3, first_input=4),
            saved["t.weight"].t()[rows, 4:7],
            None,
        ),
        "stack": (
            LinearSpec("stack", (Output(stack, runs, 2), Output(stack, Rows(3, 4), 1)), 10, True),
            torch.cat((saved["s"][2][rows], saved["s"][1][3:7])),
            torch.cat((saved["s_bias"][2][rows], saved["s_bias"][1][3:7])),
        ),
    }
    specs: list[Spec] = [spec for spec, _, _ in cases.values()]
    weights = load_weights(plan_specs(specs, Plain(), read_headers(tmp_path), dtype, "Own"), CPU)
    for name, (_, weight, bias) in cases.items():
        same(linear(weights, name), weight, bias)


def test_a_dtype_belongs_to_a_parameter(tmp_path: Path, load: Load) -> None:
    """A norm stays float32 beside bfloat16 matrices; of a mixed checkpoint only what has another dtype is converted."""
    file = tmp_path / "model.safetensors"
    tensors = {"norm.weight": torch.randn(16), "same.weight": torch.randn(16, 16).bfloat16()}
    tensors["other.weight"] = torch.randn(16, 16).half()
    save_file(tensors, file)
    size = Size(16, "hidden_size=16")
    specs: list[Spec] = [TensorSpec("norm", "norm.weight", (size,), "float32")]
    specs += [LinearSpec(name, (matrix(name, 16, 16).whole(),), 16) for name in ("same", "other")]
    weights = load_weights(plan_specs(specs, Plain(), read_headers(tmp_path), "bfloat16", "Own"), CPU)
    norm = weights.by_name["norm"]
    assert isinstance(norm, Tensor) and torch.equal(norm, tensors["norm.weight"]) and norm.dtype == torch.float32
    same(linear(weights, "same"), tensors["same.weight"])
    same(linear(weights, "other"), tensors["other.weight"].bfloat16())
    if weights.pages is not None:
        assert weights.mapped_bytes == tensors["same.weight"].nbytes
        assert weights.pages.hold(linear(weights, "same").rows[0].data_ptr())
        assert not weights.pages.hold(linear(weights, "other").rows[0].data_ptr())


def test_unaligned_tensors_of_every_form(tmp_path: Path, load: Load) -> None:
    model = save(tmp_path, "GPTNeoXConfig", SIZES)
    file = tmp_path / "model.safetensors"
    data = file.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    file.write_bytes(struct.pack("<Q", length + 1) + data[8 : 8 + length] + b" " + data[8 + length :])
    flags: dict[str, Any] = {"norm": "layer", "norm_bias": True, "gated_mlp": False}
    flags |= {"qkv_bias": True, "output_bias": True, "mlp_bias": True}
    weights = load(tmp_path, config(GPT_NEOX_NAMES, num_kv_heads=HEADS, **flags))
    stored = model.gpt_neox.layers[1].attention.query_key_value
    weight = stored.weight.view(HEADS, 3, HEAD_DIM, HIDDEN).transpose(0, 1).reshape(-1, HIDDEN)
    same(linear(weights, "layers.1.qkv"), weight, stored.bias.view(HEADS, 3, HEAD_DIM).transpose(0, 1).reshape(-1))


WRONG: dict[str, tuple[DecoderConfig, list[str]]] = {
    "fused where separate ones are demanded": (
        config(LLAMA_NAMES),
        ["lacks model.layers.0.self_attn.q_proj.weight [48, 48]", "qkv_proj.weight [80, 48] in model.safetensors"],
    ),
    "heads": (
        config(PHI3_NAMES, num_heads=3),
        ["num_attention_heads=3 and num_key_value_heads=2 of head_dim=8: 56", "qkv_proj.weight has 80 rows"],
    ),
    "intermediate size": (
        config(PHI3_NAMES, intermediate_size=41),
        ["twice intermediate_size=41: 82", "gate_up_proj.weight has 80 rows", "[80, 48] in model.safetensors"],
    ),
    "transposed": (
        config(replace(PHI3_NAMES, transposed=True)),
        ["qkv_proj.weight has 80 rows", "[80, 48] in model.safetensors, not [48, 80]"],
    ),
    "a bias": (config(PHI3_NAMES, qkv_bias=True), ["lacks model.layers.0.self_attn.qkv_proj.bias [80]"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_with_a_fused_tensor_is_named(case: str, tmp_path: Path) -> None:
    save(tmp_path, "Phi3Config", GROUPED)
    description, words = WRONG[case]
    with pytest.raises(ModelError) as caught:
        make_plan(description, read_headers(tmp_path), "float32")
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("names", [MIXTRAL_NAMES, STACKED], ids=["separate", "stacked"])
@pytest.mark.parametrize("count", [EXPERTS - 1, EXPERTS + 1, 10**9])
def test_a_wrong_number_of_experts(tmp_path: Path, names: ExpertNames, count: int) -> None:
    """It is said before a list of that length is made."""
    fields = GROUPED | {"num_local_experts": EXPERTS}
    model = save(tmp_path, "MixtralConfig", fields)
    if names is STACKED:
        state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        save_file(state, tmp_path / "model.safetensors")
    description = moe(names)
    assert description.experts is not None
    wrong = replace(description, experts=replace(description.experts, count=count))
    with pytest.raises(ModelError, match=rf"num_local_experts={count}, but .*(have 5 experts|is \[5, 48, 40\])"):
        make_plan(wrong, read_headers(tmp_path), "float32")


def outputs_of(names: WeightNames, **fields: Any) -> Iterator[Output]:
    for spec in weight_specs(config(names, **fields)):
        if isinstance(spec, LinearSpec):
            yield from spec.outputs


@pytest.mark.parametrize("experts", [None, MIXTRAL_NAMES, STACKED, GPT_OSS_EXPERTS])
@pytest.mark.parametrize("names", [LLAMA_NAMES, PHI3_NAMES, GPT_NEOX_NAMES, GPT2_NAMES])
def test_every_row_of_every_matrix_is_used_once(names: WeightNames, experts: ExpertNames | None) -> None:
    fields: dict[str, Any] = {"gated_mlp": names in (LLAMA_NAMES, PHI3_NAMES)}
    if experts is not None:
        fields = {"experts": ExpertsConfig(EXPERTS, "num_local_experts", INNER, "intermediate_size")}
    found: dict[str, list[int]] = {}
    sizes: dict[str, int] = {}
    for output in outputs_of(replace(names, experts=experts), **fields):
        stored, rows = output.stored, output.rows
        first = output.stack_index * stored.rows.extent
        taken = [first + rows.start + run * rows.step + row for run in range(rows.runs) for row in range(rows.size)]
        found.setdefault(stored.name, []).extend(taken)
        sizes[stored.name] = stored.rows.extent * (1 if stored.stack is None else stored.stack.extent)
    assert {name: sorted(rows) for name, rows in found.items()} == {name: list(range(n)) for name, n in sizes.items()}
