"""Encoders compute what transformers computes, alone and in ragged batches, and read every field of their files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from ember.engine.description.cache_groups import bytes_per_page_token, cache_groups
from ember.engine.description.families.registry import ENCODERS, MODEL_TYPES, find_family
from ember.engine.description.known_fields import HARMLESS, NEUTRAL
from ember.engine.description.operator_sets import check_features
from ember.engine.description.read_config import load_config, read_config
from ember.engine.errors import ModelError
from ember.engine.loading.load import load_decoder
from ember.engine.models.decoder import Decoder
from tests.engine_models.tiny_encoders import (
    ENCODER_VARIANTS,
    NO_CACHE,
    VOCAB_SIZE,
    batch_of,
    encoder_classes,
    make_encoder,
    randomised,
)

CPU = torch.device("cpu")
DEBERTA = ENCODER_VARIANTS["deberta"][1]
LENGTHS = (1, 2, 7, 7, 7, 40, 100, 7)  # equal ones are a problem of their own where they follow each other


def texts_of(lengths: tuple[int, ...], seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(5, VOCAB_SIZE, (length,), generator=generator).tolist() for length in lengths]


def loaded(directory: Path) -> Decoder:
    config = load_config(directory)
    assert config.warnings == ()
    return load_decoder(directory, config, dtype=torch.float32, device=CPU).decoder


@torch.inference_mode()
def assert_equal(model: Any, decoder: Decoder, texts: list[list[int]], types: list[list[int]] | None = None) -> None:
    """Each text has transformers' hidden states in a step with all of them, and alone."""
    together, first = decoder.forward(batch_of(texts, types), NO_CACHE), 0
    for number, text in enumerate(texts):
        own = None if types is None else [types[number]]
        named = {} if own is None else {"token_type_ids": torch.tensor(own)}
        expected = model(torch.tensor([text]), **named).last_hidden_state[0]
        alone = decoder.forward(batch_of([text], own), NO_CACHE)
        torch.testing.assert_close(alone, expected, atol=1e-4, rtol=0)
        torch.testing.assert_close(together[first : first + len(text)], expected, atol=1e-4, rtol=0)
        first += len(text)


@pytest.mark.parametrize("variant", ENCODER_VARIANTS)
def test_hidden_states_are_those_of_transformers(variant: str, tmp_path: Path) -> None:
    model, texts = make_encoder(variant, tmp_path), texts_of(LENGTHS)
    decoder = loaded(tmp_path)
    assert_equal(model, decoder, texts)
    if count := decoder.config.token_types:
        assert_equal(model, decoder, texts, [[place % count for place in range(len(text))] for text in texts])


def test_a_text_longer_than_its_windows_is_computed_in_parts(tmp_path: Path) -> None:
    assert_equal(make_encoder("modernbert", tmp_path), loaded(tmp_path), texts_of((700, 3, 256, 257)))


def test_a_text_does_not_depend_on_its_neighbours(tmp_path: Path) -> None:
    """A fault in the bounds of texts would be seen: every other text of the batch is changed."""
    make_encoder("modernbert", tmp_path)
    decoder, texts = loaded(tmp_path), texts_of((9, 9, 30, 30, 4))
    with torch.inference_mode():
        before = decoder.forward(batch_of(texts), NO_CACHE)[18:48]
        after = decoder.forward(batch_of([*texts_of((9, 9), 1), texts[2], *texts_of((30, 4), 2)]), NO_CACHE)[18:48]
    assert torch.equal(before, after)


@pytest.mark.parametrize(
    ("head", "variant"),
    [
        ("BertForMaskedLM", "bert"),
        ("RobertaForMaskedLM", "roberta"),
        ("DistilBertForMaskedLM", "distilbert"),
        ("MPNetForMaskedLM", "mpnet"),
        ("ModernBertForMaskedLM", "modernbert"),
        ("DebertaV2ForMaskedLM", "deberta"),
        ("ElectraForPreTraining", "electra"),
    ],
)
def test_the_body_of_a_model_with_a_head_is_read_under_its_prefix(head: str, variant: str, tmp_path: Path) -> None:
    _, config = encoder_classes(variant)
    whole = getattr(transformers, head)(config).eval()
    whole.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"architectures": [ENCODER_VARIANTS[variant][0]]}))
    assert_equal(whole.base_model, loaded(tmp_path), texts_of((5, 3)))


def test_old_names_of_norms_are_read(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = make_encoder("bert", tmp_path)
    file = tmp_path / "model.safetensors"
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in load_file(file).items()
    }
    save_file(old, file)
    assert_equal(model, loaded(tmp_path), texts_of((5,)))


def with_class() -> list[str]:
    return [name for name in ENCODERS if hasattr(transformers, name)]


@pytest.mark.parametrize("architecture", with_class())
def test_defaults_and_fields_are_those_of_the_class(architecture: str, tmp_path: Path) -> None:
    """No field of a class goes by unseen, and a file without optional fields is read as the class reads it."""
    cls = getattr(transformers, architecture).config_class
    family = find_family(architecture)
    accounted = family.fields | family.harmless.keys() | HARMLESS | NEUTRAL.keys()
    names = {field.name for field in dataclasses.fields(cls)} | cls.attribute_map.keys() | cls().to_dict().keys()
    assert not names - accounted
    assert MODEL_TYPES[cls.model_type] == architecture
    required = {"relative_attention": True, "share_att_key": True} if architecture == "DebertaV2Model" else {}
    cls(**required).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    written = json.loads(path.read_text()) | {"architectures": [architecture], "eos_token_id": None}
    whole = read_config(written)
    assert whole.warnings == ()
    sizes = {"vocab_size", "model_type", "architectures", "dtype", *required, *_sizes(family.fields)}
    assert read_config({name: value for name, value in written.items() if name in sizes}) == whole


def _sizes(fields: frozenset[str]) -> set[str]:
    """The fields that every file has."""
    names = {"hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"}
    return names | ({"dim", "n_layers", "n_heads", "hidden_dim"} & fields)


def test_nothing_is_cached_and_there_is_no_head() -> None:
    config = read_config({"architectures": ["BertModel"], **ENCODER_VARIANTS["bert"][1]})
    assert bytes_per_page_token(cache_groups(config, 4)) == 0 and not config.has_head


def test_what_no_set_computes_for_encoders_is_refused() -> None:
    config = read_config({"architectures": ["BertModel"], **ENCODER_VARIANTS["bert"][1]})
    with pytest.raises(
        ModelError, match="no operators compute attention_soft_cap=5.0 with use_bidirectional_attention"
    ):
        check_features(dataclasses.replace(config, attention_soft_cap=5.0))


@pytest.mark.parametrize(
    ("architecture", "fields", "message"),
    [
        ("BertModel", {"position_embedding_type": "relative_key"}, "position_embedding_type must be one of absolute"),
        ("RobertaModel", {"position_embedding_type": "rotary"}, "position_embedding_type must be one of absolute: no"),
        ("NomicBertModel", {"prenorm": True}, "prenorm must be false"),
        ("BertModel", {"is_decoder": True}, "is_decoder must be false"),
        ("DebertaV2Model", {"relative_attention": True}, "share_att_key must be true"),
        ("DebertaV2Model", {**DEBERTA, "position_buckets": 1}, "position_buckets must be at least 2, or -1"),
        ("DebertaV2Model", {**DEBERTA, "max_relative_positions": 1}, "max_relative_positions must be at least 2"),
        ("GteModel", {"rope_scaling": {"type": "ntk", "factor": 2.0, "mixed_b": 1.0}}, "rope_scaling.mixed_b must be"),
    ],
)
def test_what_is_not_supported_is_named(architecture: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read_config({"architectures": [architecture], **ENCODER_VARIANTS["bert"][1], **fields})


def test_fields_of_published_files_change_nothing() -> None:
    """ModernBERT has one kind of positions, whatever its files say (Granite's and Ettin's)."""
    for architecture, fields in (
        ("ModernBertModel", {"position_embedding_type": "sans_pos"}),
        ("BertModel", {"directionality": "bidi", "pooler_fc_size": 768, "output_past": True, "_num_labels": 6}),
        ("NomicBertModel", {"parallel_block_tied_norm": False}),
        ("EuroBertModel", {"bos_token": "<s>", "num_key_value_heads": 4}),
    ):
        given = {"architectures": [architecture], **ENCODER_VARIANTS["bert"][1], "type_vocab_size": 2}
        plain = read_config(given)
        assert read_config(given | fields) == plain, architecture


def test_gte_stretches_its_rotary_positions(tmp_path: Path) -> None:
    """Frequencies of the kind ntk: those of a base that is stretched by the factor, slowed so that the slowest pair has
    the factor's wavelength."""
    from ember.engine.layers.rotary import inverse_frequencies

    fields = {**ENCODER_VARIANTS["gte"][1], "rope_theta": 20000.0, "rope_scaling": {"type": "ntk", "factor": 8.0}}
    plain = read_config({"architectures": ["NewModel"], **fields, "rope_scaling": None}).rope
    scaled = read_config({"architectures": ["NewModel"], **fields}).rope
    assert plain is not None and scaled is not None
    steps = torch.arange(0, 16, 2) / 16
    torch.testing.assert_close(inverse_frequencies(scaled), 160_000.0**-steps / 8 ** (2 / 16))
    assert inverse_frequencies(scaled)[-1] == pytest.approx(inverse_frequencies(plain)[-1].item() / 8)


@pytest.mark.parametrize("activation", ["gelu", "gelu_python", "gelu_new", "gelu_accurate", "relu", "silu"])
def test_packed_matrices_compute_the_same(activation: str, tmp_path: Path) -> None:
    """Some activations are computed in the product of a packed matrix."""
    from ember.engine.core.chores import settle_weights

    name, fields = ENCODER_VARIANTS["bert"]
    cls = getattr(transformers, name)
    model = randomised(cls(cls.config_class(**fields, hidden_act=activation)))
    model.save_pretrained(tmp_path)
    decoder = loaded(tmp_path)
    for _ in settle_weights(decoder, None):
        pass
    assert next(decoder.parts.blocks[0].mlps()).up.packed == decoder.ops.reads_packed
    assert_equal(model, decoder, texts_of((5, 40)))
