"""The names that checkpoints give the weights of a model. This module does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ember.engine.description.mixers import ConvNames, DeltaNames, SelectiveNames, SsdNames

QkvOrder = Literal["parts", "heads", "quarters"]


@dataclass(frozen=True, slots=True)
class ExpertNames:
    """The checkpoint's names for a layer of experts, relative to the layer.

    A name with {} for the expert's number is that of one expert's matrix. A name without {} is that of one tensor with
    the matrices of all experts: [experts, out, in], or [experts, in, out] if they are `transposed`; None: checkpoints
    have either, and the shapes in the files tell.
    """

    router: str
    down: str
    up: str | None = None
    gate: str | None = None
    gate_up: str | None = None  # gate and up in one matrix, in place of the two
    alternates: bool = False  # rows of gate and up alternate in `gate_up`; otherwise gate's rows come first
    transposed: bool | None = False
    correction: str | None = None  # the tensor that is added to the scores for the choice alone
    correction_dim: int = 1  # 2: it is stored as [1, experts]
    shared_gate: str | None = None  # the three matrices of the MLP that computes every token
    shared_up: str | None = None
    shared_down: str | None = None
    shared_gate_up: str | None = None  # in place of `shared_gate` and `shared_up`
    latent_down: str | None = None  # the matrices before and after experts of another width than the hidden states
    latent_up: str | None = None
    shared_router: str | None = None  # the matrix of one row that weighs that MLP's output
    router_scale: str | None = None  # the vector by which the router's normalised inputs are multiplied
    expert_scales: str | None = None  # the vector of factors of the experts' outputs
    mlp_output_norm: str | None = None  # of the MLP beside the experts
    input_norm: str | None = None  # of the experts beside an MLP
    output_norm: str | None = None
    suffix: str = ""  # ends of the names of tensors that have all experts: the matrices', and their biases'
    bias_suffix: str = "_bias"
    apart: ExpertNames | None = None  # in checkpoints of the family whose experts have tensors of their own


@dataclass(frozen=True, slots=True)
class WeightNames:
    """The checkpoint's names. Layer names are relative to `layer`, in which {} is the layer's number. None: absent."""

    layer: str
    embed_tokens: str
    final_norm: str
    lm_head: str
    attention_norm: str
    mlp_norm: str | None  # None: attention's norm is the MLP's too
    output: str
    delta: DeltaNames | None = None
    conv: ConvNames | None = None
    ssd: SsdNames | None = None
    selective: SelectiveNames | None = None
    head_gate: str | None = None  # the matrix with a row for each head
    sinks: str | None = None  # the tensor of attention's sinks, one for each head
    attention_output_norm: str | None = None  # of the wiring sandwich
    mlp_output_norm: str | None = None
    query: str | None = None
    key: str | None = None
    value: str | None = None
    qkv: str | None = None  # query, key and value in one matrix, in place of the three
    # Of the rows of `qkv`. parts: query, key, value of all heads. heads: the same for each key-value head. quarters:
    # query, value, key of each quarter of the heads.
    qkv_order: QkvOrder = "parts"
    # Of latent attention: the matrices that compress the input, the norms of what they make, and the matrices that make
    # heads of it. `query` has queries that are not compressed.
    query_down: str | None = None
    query_down_norm: str | None = None
    query_up: str | None = None
    kv_down: str | None = None
    kv_down_norm: str | None = None
    kv_up: str | None = None
    # In place of `kv_up`: the matrices of all heads that make keys, transposed, and those that make values.
    key_up: str | None = None
    value_up: str | None = None
    up: str | None = None
    down: str | None = None
    gate: str | None = None
    gate_up: str | None = None  # gate and up in one matrix, gate's rows first, in place of the two
    up_gate: str | None = None  # the same with up's rows first
    activation: str | None = None  # of the module with the weights of xielu
    experts: ExpertNames | None = None
    query_norm: str | None = None  # with {} for the head's number if each head has a tensor of its own
    key_norm: str | None = None
    layer_scalar: str | None = None
    # Of inputs of layers: the table of all layers, the projection of the embeddings and its norm; in each layer the
    # gate, the projection to the hidden size and its norm.
    layer_table: str | None = None
    layer_projection: str | None = None
    layer_projection_norm: str | None = None
    layer_gate: str | None = None
    layer_output: str | None = None
    layer_output_norm: str | None = None
    unused_kv: tuple[str, ...] = ()  # beginnings of names that layers without K and V of their own may have stored
    embed_positions: str | None = None
    embed_norm: str | None = None
    embed_token_types: str | None = None
    distance_bias: str | None = None  # the table of biases by distance
    position_vectors: str | None = None  # the table of relative positions, and its norm
    position_norm: str | None = None
    text_conv: str | None = None  # the convolution over a text's tokens, and its norm
    text_conv_norm: str | None = None
    project_in: str | None = None
    project_out: str | None = None
    transposed: bool = False  # the matrices of the layers are stored as [in, out]
    base: str = "model."  # prefix that the names lack in a checkpoint of the model without a head
    other_base: str | None = None  # a prefix that some checkpoints have in place of `base`
    buffers: tuple[str, ...] = ()  # suffixes of the names of stored tensors that are not weights
    # Prefixes of the names of tensors that are not read: they predict further tokens, or are an encoder's heads.
    unused: tuple[str, ...] = ()
