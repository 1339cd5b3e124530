"""Every field that transformers' configuration classes give a family is read, known to be harmless, or refused."""

from __future__ import annotations

import ast
import contextlib
import copy
import dataclasses
import inspect
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers import GenerationConfig
from transformers.modeling_rope_utils import RopeParameters

from ember.cli.models import TYPICAL
from ember.engine.description.families.registry import ARCHITECTURES, ENCODERS, MODEL_TYPES, find_family
from ember.engine.description.fields import Fields
from ember.engine.description.known_fields import HARMLESS, NEUTRAL
from ember.engine.description.read_config import load_config
from ember.engine.description.read_rope import ROPE_KINDS
from ember.engine.errors import ModelError
from tests.engine_models import tiny
from tests.engine_models.tiny import VARIANTS, model_class

# transformers has no classes of the others (`test_own_code_families`), or only multimodal ones (`test_shells`).
WITH_CLASS = [
    name
    for name in ARCHITECTURES
    if hasattr(transformers, re.sub("(ForCausalLM|LMHeadModel)$", "Config", name))
    and (hasattr(transformers, name) or not hasattr(transformers, name.replace("CausalLM", "ConditionalGeneration")))
]


class Recorded(Mapping[str, Any]):
    """A configuration that remembers what it was asked for."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.given, self.asked = values, set[str]()

    def __getitem__(self, name: str) -> Any:
        self.asked.add(name)
        return self.given[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.given)

    def __len__(self) -> int:
        return len(self.given)


def config_class(architecture: str) -> Any:
    return tiny.config_class(re.sub("(ForCausalLM|LMHeadModel)$", "", architecture))


def new_config(architecture: str, **fields: Any) -> Any:
    """A configuration of the class's defaults, but for heads with which nothing can be made of it."""
    cls = config_class(architecture)
    plain = cls().to_dict()
    own = {}
    if plain.get("head_dim", 0) is None:
        own["head_dim"] = plain["hidden_size"] // plain["num_attention_heads"]
    own |= {"num_attention_heads": 64} if architecture == "Glm4MoeForCausalLM" else {}
    return cls(**{**own, "eos_token_id": 1, **fields})  # some classes have a default beyond their vocabulary


def older_names(cls: Any) -> set[str]:
    """The names of older files that a configuration class looks for in its further arguments."""
    code = list(ast.walk(ast.parse(inspect.getsource(sys.modules[cls.__module__]))))
    held = [
        node.left for node in code if isinstance(node, ast.Compare) and ast.unparse(node.comparators[0]) == "kwargs"
    ]
    held += [
        node.args[0]
        for node in code
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("kwargs.") and node.args
    ]
    return {str(node.value) for node in held if isinstance(node, ast.Constant)}


@pytest.mark.parametrize("architecture", WITH_CLASS)
def test_no_field_of_a_class_goes_by_unseen(architecture: str) -> None:
    cls = config_class(architecture)
    names = {field.name for field in dataclasses.fields(cls)} | cls.attribute_map.keys() | cls().to_dict().keys()
    names |= older_names(cls) - (
        {"layer_types"} if architecture == "Ministral3ForCausalLM" else set()
    )  # it warns alone
    family = find_family(architecture)
    accounted = family.fields | family.harmless.keys() | HARMLESS | NEUTRAL.keys()
    assert not names - accounted, "read it, or say in known_fields that it does no harm"
    assert not GenerationConfig._get_default_generation_params().keys() - accounted
    assert MODEL_TYPES[cls.model_type] == architecture


# What classes other than a text decoder's read: of images and sound, and for tasks other than generation.
OTHER_CLASSES = re.compile("Vision|Audio|Multimodal|Multi[Mm]odal|MLPProjection|ForConditional|Classification|Summary")
OTHER_PARTS = re.compile(
    "(text|vision|audio)_config|(image|video|audio)_token_id|num_channels|patch_size|use_clipped_.*"
)
# Settings of one run, and methods.
NOT_FIELDS = {"_attn_implementation", "_rope_type_labels", "_is_quantized", "get_text_config", "to_dict", "num_labels"}
NOT_READ = {
    ("OlmoeForCausalLM", "sliding_window"),  # passed on to kernels alone, and its class has no such field
    ("SolarOpenForCausalLM", "intermediate_size"),  # of an MLP without a size of its own, of which there is none
}


def fields_read_by(source: str) -> set[str]:
    """The fields of configurations that a modelling file of transformers reads, as attributes or by getattr."""
    found = set()
    classes = [node for node in ast.parse(source).body if not OTHER_CLASSES.search(getattr(node, "name", ""))]
    for node in (inner for outer in classes for inner in ast.walk(outer)):
        if isinstance(node, ast.Attribute):
            holder, name = node.value, node.attr
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func) == "getattr"
            and isinstance(node.args[1], ast.Constant)
        ):
            holder, name = node.args[0], str(node.args[1].value)
        else:
            continue
        if ast.unparse(holder).removeprefix("self.") in ("config", "text_config", "layer_config"):
            found.add(name)
    return found


@pytest.mark.parametrize("architecture", [name for name in WITH_CLASS if hasattr(transformers, name)])
def test_no_field_that_a_model_reads_goes_by_unseen(architecture: str) -> None:
    """Also one that the configuration class does not have."""
    cls, family = config_class(architecture), find_family(architecture)
    accounted = family.fields | family.harmless.keys() | HARMLESS | NEUTRAL.keys() | NOT_FIELDS
    read = fields_read_by(inspect.getsource(sys.modules[getattr(transformers, architecture).__module__]))
    by_own_name = {name: {name, cls.attribute_map.get(name)} for name in read}
    by_own_name |= {own: {own, usual} for usual, own in cls.attribute_map.items() if own in read}
    unseen = {name for name, names in by_own_name.items() if not names & accounted and not OTHER_PARTS.fullmatch(name)}
    unseen -= {name for name in unseen if isinstance(getattr(cls, name, None), property)}
    assert unseen <= {name for owner, name in NOT_READ if owner == architecture}
    assert len(read) > 5


def test_rope_parameters_that_transformers_knows() -> None:
    """A key that some kind reads is read by every kind that has a use for it here, or its kind is refused."""
    elsewhere = {"alpha"}  # kinds that are refused
    known = frozenset[str]().union(*ROPE_KINDS.values()) | elsewhere
    assert not set(RopeParameters.__annotations__) - known


PER_LAYER = ("layer_types", "no_rope_layers", "mlp_layer_types", "moe_topk")


@pytest.mark.parametrize("architecture", WITH_CLASS)
def test_a_family_reads_what_it_lists_and_nothing_else(architecture: str) -> None:
    asked: set[str] = set()
    for name, differences in VARIANTS.values():
        if model_class(name) == architecture:
            per_layer = [len(differences[name]) for name in PER_LAYER if name in differences]
            layers = {"num_hidden_layers": per_layer[0]} if per_layer else {}
            values = Recorded(new_config(architecture, **{**differences, **layers}).to_dict())
            find_family(architecture).read(Fields(values))
            asked |= values.asked
    listed = find_family(architecture).fields
    assert asked and asked <= listed
    of_load_config = {"architectures", "model_type", "dtype", "torch_dtype", "eos_token_id", "quantization_config"}
    of_load_config |= {"compression_config"}  # its older name
    assert listed <= asked | of_load_config | {"original_max_position_embeddings"}, "what is listed is read"


@pytest.mark.parametrize("architecture", WITH_CLASS)
def test_a_file_of_transformers_is_read_without_a_word(architecture: str, tmp_path: Path) -> None:
    new_config(architecture).save_pretrained(tmp_path)
    whole = load_config(tmp_path)
    assert whole.warnings == () and whole.architecture == architecture


SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "ffn_dim", "num_hidden_layers", "num_attention_heads"),
    *("ffn_hidden_size", "n_embd", "n_layer", "n_head", "num_layers", "num_heads", "d_model", "n_layers", "n_heads"),
)


@pytest.mark.parametrize("architecture", WITH_CLASS)
def test_absent_fields_have_the_defaults_of_transformers(architecture: str, tmp_path: Path) -> None:
    """All but sizes, which every file has, and end tokens, which are no one's by default."""
    new_config(architecture).save_pretrained(tmp_path)
    whole = load_config(tmp_path)
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    kept = (*SIZES, "model_type", "eos_token_id")
    path.write_text(json.dumps({name: content[name] for name in kept if name in content}))
    bare = load_config(tmp_path)
    assert bare.windows() == whole.windows()
    assert dataclasses.replace(bare, windowed_layers=whole.windowed_layers) == whole


OLDER_ROPES: list[dict[str, Any]] = [
    {"rope_theta": 777.0},
    {"rope_theta": 777.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
    {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}},
]


SU = {
    "type": "su",
    "short_factor": [1.0 + pair for pair in range(48)],
    "long_factor": [9.0] * 48,
    "original_max_position_embeddings": 4096,
}
NEWER_KEYS: list[dict[str, Any]] = [
    {"rope_theta": 777.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}},
]
OWN_ROPES: dict[str, list[dict[str, Any]]] = {
    **dict.fromkeys(("Olmo3ForCausalLM", "Gemma3ForCausalLM"), NEWER_KEYS),  # their classes do not know `type`
    "MellumForCausalLM": [],  # it has no older files
    "Cohere2MoeForCausalLM": [],  # nor has it
    "Phi3ForCausalLM": [{"rope_theta": 777.0}, {"rope_scaling": SU, "max_position_embeddings": 65536}],
    "GPTNeoXForCausalLM": [
        {"rotary_emb_base": 777, "rotary_pct": 0.5},
        {"rope_scaling": {"type": "linear", "factor": 2.0}, "rotary_pct": 0.75},
    ],
}


@pytest.mark.parametrize(
    ("architecture", "rope"),
    [
        (name, rope)
        for name in WITH_CLASS
        if {"rope_theta", "rotary_pct"} & find_family(name).fields
        for rope in OWN_ROPES.get(name, OLDER_ROPES)
    ],
)
def test_rope_of_older_files_is_what_transformers_makes_of_it(
    architecture: str, rope: dict[str, Any], tmp_path: Path
) -> None:
    if architecture == "PhimoeForCausalLM" and "rope_scaling" in rope:
        rope = {"rope_theta": 99.0}  # of the kinds of scaling its class takes longrope alone
    new_config(architecture, **copy.deepcopy(rope)).save_pretrained(tmp_path)
    newer = load_config(tmp_path)
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    assert "rope_theta" not in content and content.pop("rope_parameters")
    path.write_text(json.dumps(content | rope))
    older = load_config(tmp_path)
    assert (older.rope, older.local_rope, older.warnings) == (newer.rope, newer.local_rope, newer.warnings)
    assert all("longrope has short_factor for all" in warning for warning in newer.warnings)
    assert older.max_position_embeddings == newer.max_position_embeddings


@pytest.mark.parametrize("architecture", WITH_CLASS)
def test_fields_of_published_files_that_change_nothing_are_passed_over(architecture: str, tmp_path: Path) -> None:
    """With the values that are known; another value is named."""
    new_config(architecture).save_pretrained(tmp_path)
    path, harmless = tmp_path / "config.json", find_family(architecture).harmless
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {name: (values or ("any",))[0] for name, values in harmless.items()}))
    assert load_config(tmp_path).warnings == ()
    for name in (name for name, values in harmless.items() if values):
        path.write_text(json.dumps(content | {name: "another"}))
        (warning,) = load_config(tmp_path).warnings
        assert f"does not read for {architecture}: {name}." in warning


def test_the_longest_context_of_cohere_is_that_of_its_tokenizer(tmp_path: Path) -> None:
    new_config("CohereForCausalLM", max_position_embeddings=8192, model_max_length=131072).save_pretrained(tmp_path)
    assert load_config(tmp_path).max_position_embeddings == 131072


FAULTS: list[tuple[str, dict[str, Any], str]] = [
    ("SmolLM3", {"no_rope_layers": [1, 2]}, "no_rope_layers must be a list of true and false, or of 1 and 0, not"),
    ("SmolLM3", {"no_rope_layers": [1, 0]}, "no_rope_layers has 2 entries for num_hidden_layers=36"),
    ("Exaone4", {"layer_types": None, "sliding_window_pattern": "LLLG"}, "sliding_window_pattern must be an integer"),
    ("Cohere2", {"layer_types": None, "sliding_window_pattern": 0}, "sliding_window_pattern must be an integer"),
    ("Granite", {"logits_scaling": 0}, "logits_scaling must be a number above 0, not 0"),
    ("Bamba", {"partial_rotary_factor": 1.0}, "partial_rotary_factor must be 0.5, as in every Bamba, not 1.0"),
    ("Olmo", {"clip_qkv": "8"}, "clip_qkv must be a number of at least 0, not '8'"),
    ("Olmo3", {"rope_parameters": {"full_attention": 3}}, "rope_parameters.full_attention must be an object, not 3"),
    ("Apertus", {"hidden_act": "mish"}, "hidden_act must be one of silu, "),
    *(
        (name, {field: "gelu"}, f"{field} must be one of silu: no other is supported, not 'gelu'")  # of convolutions
        for field, names in (
            ("hidden_act", "Bamba GraniteMoeHybrid FalconH1 Mamba2 Qwen3_5 Qwen3_5Moe Qwen3Next"),
            ("mamba_hidden_act", "NemotronH"),
        )
        for name in names.split()
    ),
    ("FalconH1", {"key_multiplier": -0.5}, "key_multiplier must be a number above 0, not -0.5"),
    ("Granite", {"attention_multiplier": -1.0}, "attention_multiplier must be a number above 0, not -1.0"),
    ("HyperCLOVAX", {"attention_multiplier": -1.0}, "attention_multiplier must be a number above 0, not -1.0"),
    ("Gemma4", {"use_bidirectional_attention": "all"}, "use_bidirectional_attention must be null or 'vision'"),
    ("Gemma4", {"vocab_size_per_layer_input": 99}, "vocab_size_per_layer_input=99 is less than vocab_size=262144"),
    ("Gemma4", {"num_kv_shared_layers": 25}, "num_kv_shared_layers=25: no layer of each of layer_types is left"),
    ("Gemma4", {"enable_moe_block": True}, "the field num_experts is missing"),
    (
        "Gemma4",
        {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 5},
        "top_k_experts=5 is more than num_experts=4",
    ),
    ("Gemma4", {"per_layer_config": {"30": {"head_dim": 64}}}, "per_layer_config: '30' is not the number of one of 30"),
    ("Gemma4", {"per_layer_config": {"5": {"head_dim": 64}}}, "per_layer_config must have the same head_dim"),
    ("Gemma4", {"per_layer_config": {"5": {"rms_norm_eps": 1}}}, "per_layer_config.5.rms_norm_eps is not supported"),
    (
        "Gemma4",
        {"attention_k_eq_v": True, "per_layer_config": None, "num_global_key_value_heads": 3},
        "num_attention_heads=8 must be a multiple of 3 key-value heads",
    ),
    (
        "Gemma4",
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 1.5},
                "sliding_attention": {},
            }
        },
        "partial_rotary_factor=1.5 rotates",
    ),
    ("Gemma4", {"rope_parameters": {"full_attention": {}}}, "rope_parameters must have full_attention and sliding"),
    ("Gemma4", {"rope_parameters": {"rope_theta": 1e4}}, "rope_parameters must have full_attention .* not rope_theta"),
    (
        "HunYuanDenseV1",
        {"rope_scaling": {"type": "dynamic", "alpha": 1e300}},
        "rope_scaling.alpha must be a number above 0 and of at most 1e[+]06",
    ),
]


@pytest.mark.parametrize(("name", "fields", "message"), FAULTS)
def test_a_fault_names_the_field(name: str, fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    new_config(f"{name}ForCausalLM").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    with pytest.raises(ModelError, match=f"config.json: {message}"):
        load_config(tmp_path)


def test_one_expert_of_jamba_is_an_mlp_whatever_a_token_has(tmp_path: Path) -> None:
    new_config("JambaForCausalLM", num_experts=1, num_experts_per_tok=2).save_pretrained(tmp_path)
    assert load_config(tmp_path).experts is None


def test_older_names_of_nemotron_h_hold(tmp_path: Path) -> None:
    older = {"mamba_n_groups": 4, "mamba_d_conv": 3, "mamba_conv_bias": False, "mamba_dt_min": 0.5}
    new_config("NemotronHForCausalLM", **older).save_pretrained(tmp_path)
    newer = load_config(tmp_path)
    assert newer.ssd is not None and (newer.ssd.groups, newer.ssd.kernel, newer.ssd.least_dt) == (4, 3, 0.5)
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "n_groups": 8, "conv_kernel": 4, "time_step_min": 0.001, **older}))
    assert load_config(tmp_path) == newer and newer.warnings == ()
    with pytest.raises(ModelError, match="mamba_num_heads=128 must be a multiple of mamba_n_groups=3"):
        path.write_text(json.dumps({**content, "mamba_n_groups": 3}))
        load_config(tmp_path)


@pytest.mark.parametrize("odd", [[{}], ""])
def test_a_value_of_the_wrong_type_in_any_field_is_a_model_error(odd: Any) -> None:
    families = {id(find_family(name)): name for name in (*ARCHITECTURES, *ENCODERS)}
    for architecture in families.values():
        family = find_family(architecture)
        for field in family.fields | family.harmless.keys():
            with contextlib.suppress(ModelError):
                family.read(Fields({**TYPICAL, "architectures": [architecture], field: odd}))


LAYERS_OF_GEMMA4 = {str(layer): {"head_dim": 64, "num_key_value_heads": 2} for layer in (5, 11, 17, 23, 29)}
PUBLISHED: dict[str, Any] = {"attention_k_eq_v": True, "global_head_dim": 64, "num_global_key_value_heads": 2}


def test_heads_of_gemma4_are_those_of_both_spellings(tmp_path: Path) -> None:
    """`per_layer_config` of transformers' own files, and the fields of published ones, which hold without it."""
    new_config("Gemma4ForCausalLM", attention_k_eq_v=True).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    content = {name: value for name, value in json.loads(path.read_text()).items() if name != "per_layer_config"}
    made = []
    for fields in (
        PUBLISHED,
        {"per_layer_config": LAYERS_OF_GEMMA4},
        {**PUBLISHED, "global_head_dim": 99, "per_layer_config": LAYERS_OF_GEMMA4},
    ):
        path.write_text(json.dumps(content | fields))
        made.append(load_config(tmp_path))
    assert made[0] == made[1] == made[2]
    assert made[0].heads(4) == (8, 4, 256) and made[0].heads(5) == (8, 2, 64)
    path.write_text(json.dumps(content | PUBLISHED | {"attention_k_eq_v": False}))
    assert load_config(tmp_path).heads(5) == (8, 4, 64), "without shared keys and values their number is the common one"
    path.write_text(json.dumps(content | {"per_layer_config": {}}))
    assert load_config(tmp_path).heads(5) == load_config(tmp_path).heads(4), "an empty object: all heads are equal"
    layer_types = ["sliding_attention"] * 30
    path.write_text(json.dumps(content | {"layer_types": layer_types}))
    forced = load_config(tmp_path)
    assert forced.windows() == (*[512] * 29, None) and "the last of layer_types" in forced.warnings[0]


def test_the_kind_default_rotates_whole_heads_of_gemma4(tmp_path: Path) -> None:
    new_config("Gemma4ForCausalLM").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    content["rope_parameters"]["sliding_attention"]["partial_rotary_factor"] = 0.5
    path.write_text(json.dumps(content))
    config = load_config(tmp_path)
    assert config.local_rope is not None and config.local_rope.rotary_dim == 256
    assert "rope_parameters.sliding_attention.partial_rotary_factor has no meaning" in config.warnings[0]
