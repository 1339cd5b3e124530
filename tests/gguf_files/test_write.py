"""`ember quantize --format gguf-...`: what it writes is the checkpoint, and other programs read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize, quantize
from safetensors.torch import load_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from ember import cli
from ember.cli.quantize import GGUF
from ember.engine.quantization.write_blocks import to_bytes
from ember.flags import QUANTIZE_FORMATS
from ember.front.text.tokenizer import Tokenizer as OurTokenizer
from ember.gguf.pretokenizers import PRE_TOKENIZERS
from tests.engine_models.tiny import make_tiny
from tests.gguf_files.test_families import CASES, load, logits

TYPES = [form.removeprefix(GGUF).upper() for form in QUANTIZE_FORMATS if form.startswith(GGUF)]
WRITTEN = ["llama_mha", "llama_tied", "llama3", "llama_linear", "llama_yarn", "mixtral", "arcee", "smollm3", "seed_oss"]
WRITTEN += ["qwen2", "qwen3", "qwen3_moe", "gemma", "gemma2", "gemma3", "granite"]


def written(source: Path, target: Path, form: str) -> Path:
    assert cli.main(["quantize", str(source), str(target), "--format", form]) == 0
    (file,) = target.iterdir()
    return file


@pytest.mark.parametrize("type_name", TYPES)
def test_blocks_are_those_of_the_package(type_name: str) -> None:
    torch.manual_seed(5)
    weight = torch.randn(16, 96) * torch.logspace(-9, 3, 16)[:, None]
    weight[3], weight[4, :32], weight[5] = 0, 0.25, torch.arange(-48, 48) / 2
    wanted = quantize(weight.numpy(), GGMLQuantizationType[type_name])
    assert np.array_equal(to_bytes(weight, type_name).numpy(), wanted.view(np.uint8).reshape(16, -1))


@pytest.mark.parametrize("variant", WRITTEN)
def test_a_file_computes_what_its_checkpoint_does(variant: str, tmp_path: Path) -> None:
    fields = CASES[variant].fields if variant in CASES else {}
    source = make_tiny(variant, tmp_path / "source", max_shard_size="60KB", **fields)
    model, wanted = load(written(source, tmp_path / "target", "gguf-f32")), logits(load(source))
    scale = max(each.abs().max().item() for each in wanted)
    for found, expected in zip(logits(model), wanted, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * scale)


@pytest.mark.parametrize("type_name", ["Q8_0", "Q4_0"])
def test_the_package_reads_the_file(type_name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "num_hidden_layers": 1}
    source = make_tiny("qwen3", tmp_path / "source", **sizes)
    file = written(source, tmp_path / "target", f"gguf-{type_name.lower()}")
    assert file.name == f"source-{type_name}.gguf" and "matrices quantized. " in capsys.readouterr().out
    found = {tensor.name: tensor for tensor in GGUFReader(file).tensors}
    kinds = {name: tensor.tensor_type.name for name, tensor in found.items()}
    assert kinds["blk.0.ffn_down.weight"] == type_name and kinds["blk.0.attn_norm.weight"] == "F32"
    assert kinds["token_embd.weight"] == "Q8_0"
    stored = load_file(source / "model.safetensors")
    for ours, theirs in (("attn_q", "self_attn.q_proj"), ("ffn_down", "mlp.down_proj")):
        tensor = found[f"blk.0.{ours}.weight"]
        weight = stored[f"model.layers.0.{theirs}.weight"].float().numpy()
        restored = dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(restored, dequantize(quantize(weight, tensor.tensor_type), tensor.tensor_type))


@pytest.mark.parametrize("variant", ["phi3", "gpt2", "qwen2_moe", "llama_mixed", "qwen3_moe"])
def test_families_that_are_not_written_are_named(
    variant: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if variant == "llama_mixed":  # a window has no place in the metadata of this architecture
        source = make_tiny("mistral", tmp_path / "source", sliding_window=7)
        message = "cannot be written as a GGUF file: sliding_window"
    elif variant == "qwen3_moe":  # files of this architecture have normalised scores
        fields: dict[str, Any] = {"decoder_sparse_step": 1, "use_sliding_window": False}
        source = make_tiny(variant, tmp_path / "source", norm_topk_prob=False, **fields)
        message = "experts.normalised (norm_topk_prob in config.json) is False, and the file would say True"
    else:
        source, message = make_tiny(variant, tmp_path / "source"), "cannot be written as a GGUF file; these can: Llama"
    assert cli.main(["quantize", str(source), str(tmp_path / "target"), "--format", "gguf-q8_0"]) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "target").exists()


TEXTS = ["Hello it's 12345  o'clock\n\n", "über 你好 🦊 don't", "<s> a </s>", " x", ""]


def byte_level(pre: str) -> Tokenizer:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["he", "Ġa", "Ġo", "12", "'s"]
    merges = [("h", "e"), ("Ġ", "a"), ("Ġ", "o"), ("1", "2"), ("'", "s")]
    kind = PRE_TOKENIZERS[pre]
    vocab = {token: number for number, token in enumerate([*letters, *words])}
    backend = Tokenizer(models.BPE(vocab, merges, ignore_merges=kind.ignores_merges))
    cuts = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in kind.patterns]
    backend.pre_tokenizer = pre_tokenizers.Sequence([*cuts, pre_tokenizers.ByteLevel(False, use_regex=False)])
    backend.decoder = decoders.ByteLevel()
    if kind.is_nfc:
        backend.normalizer = normalizers.NFC()
    backend.add_special_tokens(["<s>", "</s>"])
    return backend


def sentencepiece() -> Tokenizer:
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁ahel", "he", "▁a", "▁he", "ll", "aa", "lll"]
    vocab = {token: number for number, token in enumerate(tokens)}
    merges = [("h", "e"), ("▁", "a"), ("▁", "he"), ("a", "a"), ("l", "l"), ("ll", "l"), ("l", "ll")]
    backend = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.add_tokens([AddedToken("aa", normalized=False)])  # as the newlines of Gemma: its merge is never used
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    backend.add_special_tokens(["<s>", "</s>"])
    return backend


@pytest.mark.parametrize("kind", ["llama-bpe", "qwen2", "starcoder", "deepseek-v3", "sentencepiece"])
def test_the_tokenizer_and_the_template_are_in_the_file(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_tiny("llama", tmp_path / "source", vocab_size=300, num_hidden_layers=1)
    backend = sentencepiece() if kind == "sentencepiece" else byte_level(kind)
    backend.save(str(source / "tokenizer.json"))
    (source / "tokenizer_config.json").write_text(
        '{"bos_token": "<s>", "eos_token": "</s>", "chat_template": "{{ x }}"}'
    )
    ours = OurTokenizer.load(written(source, tmp_path / "target", "gguf-q8_0"))
    assert "closest" not in capsys.readouterr().err
    theirs = OurTokenizer.load(source)
    assert (ours.bos_token_id, ours.eos_token_id, ours.chat_template) == (
        theirs.bos_token_id,
        theirs.eos_token_id,
        "{{ x }}",
    )
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text)
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text))


def test_a_tokenizer_that_files_cannot_have_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The demo model's splits numbers and newlines in a way of its own, which is written as the closest kind."""
    written(Path("demo"), tmp_path / "demo", "gguf-q8_0")
    assert "which is the closest" in capsys.readouterr().err
    source = make_tiny("llama", tmp_path / "source", vocab_size=300, num_hidden_layers=1)
    lacks_a_merge = sentencepiece().to_str().replace(',["l","l"]', "")
    other_kind = Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>")).to_str()
    for text, message in ((lacks_a_merge, "are not those of scores"), (other_kind, "of the kind WordLevel cannot be")):
        (source / "tokenizer.json").write_text(text)
        assert cli.main(["quantize", str(source), str(tmp_path / "target"), "--format", "gguf-q8_0"]) == 1
        assert message in capsys.readouterr().err and not (tmp_path / "target").exists()
