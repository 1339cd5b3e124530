"""Weights: headers, plans, readers and dtypes; what is wrong with a checkpoint is said in one line."""

from __future__ import annotations

import gc
import json
import mmap
import os
import resource
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ember.engine.core.chores import settle_weights
from ember.engine.description import read_config as read_config_module
from ember.engine.description.read_config import load_config
from ember.engine.errors import ModelError
from ember.engine.layers import linear
from ember.engine.layers.linear import can_pack
from ember.engine.loading import dtype as dtype_module
from ember.engine.loading import mapped, place, reader
from ember.engine.loading.dtype import choose_dtype_name
from ember.engine.loading.files import prefetch, weight_files
from ember.engine.loading.load import Loaded, begin, load_decoder
from ember.engine.loading.mapped import Mapped, Warming
from ember.engine.loading.place import mapped_tensors
from ember.engine.loading.plan import make_plan, read_headers
from ember.engine.loading.safetensors_header import read_header
from ember.engine.models.decoder import Decoder
from ember.engine.operators import torch_ops
from tests.engine_models.tiny import make_tiny

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture
def copy(llama: Path, tmp_path: Path) -> Path:
    """A checkpoint that a test may spoil."""
    for file in llama.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def load_whole(directory: Path, dtype: torch.dtype = torch.float32, **arguments: Any) -> Loaded:
    return load_decoder(directory, load_config(directory), dtype=dtype, device=CPU, **arguments)


def load(directory: Path, dtype: torch.dtype = torch.float32, **arguments: Any) -> Decoder:
    return load_whole(directory, dtype, **arguments).decoder


def settle(loaded: Loaded) -> None:
    for _ in settle_weights(loaded.decoder, loaded.pages):
        pass


def same_weights(one: Decoder, other: Decoder) -> bool:
    pairs = [
        pair
        for a, b in zip(one.parts.blocks, other.parts.blocks, strict=True)
        for pair in (
            (a.attention.qkv, b.attention.qkv),
            (a.attention.output, b.attention.output),
            (next(a.mlps()).up, next(b.mlps()).up),
            (next(a.mlps()).down, next(b.mlps()).down),
        )
    ]
    pairs.append((one.parts.head, other.parts.head))
    ids = torch.arange(one.config.vocab_size)
    tables = torch.equal(one.parts.embedding(ids, ids), other.parts.embedding(ids, ids))
    return tables and all(torch.equal(a.weight, b.weight) for a, b in pairs)


def test_fused_matrices_hold_the_rows_in_order(llama: Path) -> None:
    saved, model = load_file(llama / "model.safetensors"), load(llama)
    for number, block in enumerate(model.parts.blocks):
        prefix = f"model.layers.{number}."
        qkv = torch.cat([saved[f"{prefix}self_attn.{name}_proj.weight"] for name in "qkv"])
        up = torch.cat([saved[f"{prefix}mlp.{name}_proj.weight"] for name in ("gate", "up")])
        assert torch.equal(block.attention.qkv.weight, qkv) and torch.equal(next(block.mlps()).up.weight, up)
        assert torch.equal(next(block.mlps()).down.weight, saved[f"{prefix}mlp.down_proj.weight"])
    assert torch.equal(model.parts.head.weight, saved["lm_head.weight"])


@pytest.mark.parametrize("chunk_bytes", [1 << 24, 4096])
def test_shards_chunks_and_early_reads_give_the_same_weights(
    llama: Path, tmp_path: Path, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load(llama)
    monkeypatch.setattr(reader, "CHUNK_BYTES", chunk_bytes)
    sharded = make_tiny("llama", tmp_path, max_shard_size="100KB")
    assert len(weight_files(sharded)) > 3
    loaded = load_whole(sharded)
    assert same_weights(whole, loaded.decoder)
    assert loaded.report.files == len(weight_files(sharded)) and loaded.report.nbytes == whole.weight_bytes
    started = begin(sharded, load_config(sharded), "float32", "cpu")
    assert started is not None and same_weights(whole, load(sharded, started=started))


@pytest.mark.parametrize("wanted", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("saved", [torch.bfloat16, torch.float32])
def test_weights_are_converted_on_the_way(llama: Path, tmp_path: Path, saved: torch.dtype, wanted: torch.dtype) -> None:
    directory = make_tiny("llama", tmp_path, dtype=saved)
    model, exact = load(directory, wanted), load(llama)
    assert torch.equal(
        model.parts.blocks[1].attention.qkv.weight, exact.parts.blocks[1].attention.qkv.weight.to(saved).to(wanted)
    )
    assert model.dtype == wanted and load_config(directory).dtype == str(saved).removeprefix("torch.")


def test_other_boot_work_is_done_while_threads_read(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The threads cannot end before it, and the weights are complete after it."""
    is_done = threading.Event()
    read_chunk = place.read_chunk

    def read_late(*arguments: Any) -> None:
        assert is_done.wait(60)
        read_chunk(*arguments)

    monkeypatch.setattr(place, "read_chunk", read_late)
    calls: list[str] = []

    def meanwhile() -> None:
        calls.append("meanwhile")
        is_done.set()

    late = load(llama, torch.bfloat16, meanwhile=meanwhile)  # the checkpoint's float32 is converted, so not mapped
    assert calls == ["meanwhile"]
    assert same_weights(late, load(llama, torch.bfloat16))


@pytest.mark.parametrize("chunk_bytes", [64, 4 << 20])
def test_staging_memory_is_one_allocation(llama: Path, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int) -> None:
    """Each thread has two buffers of it, and a row that is longer than a chunk gets memory of its own."""
    arenas = []

    class Noted(place.Arena):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            arenas.append(list(self._free))

    monkeypatch.setattr(place, "Arena", Noted)
    monkeypatch.setattr(reader, "CHUNK_BYTES", chunk_bytes)
    staged = load(llama, torch.bfloat16)
    (buffers,) = arenas
    assert len(buffers) == 2 * reader.default_threads() and {len(buffer) for buffer in buffers} == {chunk_bytes}
    assert len({buffer.untyped_storage().data_ptr() for buffer in buffers}) == 1
    assert len({buffer.data_ptr() for buffer in buffers}) == len(buffers)
    monkeypatch.undo()
    assert same_weights(staged, load(llama, torch.bfloat16))


def test_a_mixed_checkpoint_is_converted_tensor_by_tensor(copy: Path) -> None:
    file = copy / "model.safetensors"
    exact = load(copy)
    tensors = load_file(file)
    save_file({name: t.half() if "norm" in name else t for name, t in tensors.items()}, file, {"format": "pt"})
    model = load(copy)
    assert same_weights(model, exact)
    norm = tensors["model.norm.weight"].half().float()
    assert model.parts.final_norm is not None and model.parts.final_norm.weight is not None
    assert torch.equal(model.parts.final_norm.weight, norm)


def test_checkpoint_of_the_bare_model_and_stored_tied_head(tmp_path: Path) -> None:
    directory = make_tiny("llama_tied", tmp_path)
    file = directory / "model.safetensors"
    exact = load(directory)
    tensors = {name.removeprefix("model."): tensor for name, tensor in load_file(file).items()}
    tensors["lm_head.weight"] = tensors["embed_tokens.weight"].clone()
    tensors["layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(tensors, file, {"format": "pt"})
    assert same_weights(load(directory), exact)
    assert load(directory).config.tie_word_embeddings
    tensors["lm_head.weight"][-1, -1] += 1  # another head than the embedding holds against config.json
    save_file(tensors, file, {"format": "pt"})
    model = load(directory)
    assert not model.config.tie_word_embeddings
    assert torch.equal(model.parts.head.weight, tensors["lm_head.weight"])
    assert isinstance(model.parts.embedding.tokens, torch.Tensor)
    assert torch.equal(model.parts.embedding.tokens, tensors["embed_tokens.weight"])


def test_packing_replaces_the_plain_weights_layer_by_layer(llama: Path, tmp_path: Path) -> None:
    loaded = load_whole(llama)
    model = loaded.decoder
    if not can_pack("cpu", model.dtype):
        pytest.skip("no packed linears on this machine")
    pieces = settle_weights(model, loaded.pages)
    next(pieces)
    assert [block.attention.qkv.packed for block in model.parts.blocks[:2]] == [True, False]
    assert list(pieces)
    assert all(block.attention.qkv.packed and next(block.mlps()).down.packed for block in model.parts.blocks)
    assert model.parts.head.packed
    tied = load_whole(make_tiny("llama_tied", tmp_path))
    settle(tied)
    parts = tied.decoder.parts
    assert parts.head.packed and parts.head.weight is not parts.embedding.tokens


@pytest.mark.parametrize("is_cached", [True, False])
@pytest.mark.parametrize("family", ["llama_mha", "llama_tied", "opt_post_norm"])
def test_mapped_matrices_are_the_same_and_leave_their_files_when_packed(
    family: str, is_cached: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With every parameter mapped: the same weights, used in parts, and after packing none is in a file any more."""
    directory = make_tiny(family, tmp_path, max_shard_size="100KB")
    exact = load(directory)
    monkeypatch.setattr(mapped, "SMALL_BYTES", 0)
    monkeypatch.setattr(mapped, "_is_cached", lambda descriptor, chunk: is_cached)
    loaded = load_whole(directory)
    model, report = loaded.decoder, loaded.report
    assert report.nbytes == exact.weight_bytes == model.weight_bytes
    assert report.read_bytes <= (0.1 if is_cached else 1.0) * exact.weight_bytes
    assert report.read_bytes > (0 if is_cached else 0.9 * exact.weight_bytes)
    assert same_weights(model, exact) and len(model.parts.blocks[0].attention.qkv.rows) == 3
    x = torch.randn(5, exact.config.hidden_size)
    for one, other in (
        (a.attention.qkv, b.attention.qkv) for a, b in zip(model.parts.blocks, exact.parts.blocks, strict=True)
    ):
        torch.testing.assert_close(one(x), other(x))
    settle(loaded)
    del loaded
    gc.collect()
    if Path("/proc/self/maps").exists():
        assert str(directory) not in Path("/proc/self/maps").read_text()
    torch.testing.assert_close(model.logits(x), exact.logits(x))
    tokens = torch.arange(model.config.vocab_size)
    assert torch.equal(model.parts.embedding(tokens, tokens), exact.parts.embedding(tokens, tokens))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="asks Linux what is mapped")
def test_matrices_are_unmapped_layer_by_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = make_tiny("llama", tmp_path)
    monkeypatch.setattr(mapped, "SMALL_BYTES", 1024)  # norms are read, as they are in real models
    loaded = load_whole(directory)
    pieces = settle_weights(loaded.decoder, loaded.pages)

    def mappings() -> int:
        return Path("/proc/self/maps").read_text().count(str(directory))

    before = mappings()
    assert before >= len(loaded.decoder.parts.blocks)
    next(pieces)
    assert mappings() == before - 1
    assert list(pieces) and mappings() == 0


@pytest.mark.parametrize("can", [True, False])
def test_mapped_weights_are_taken_over_without_packing_too(
    can: bool, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped, "SMALL_BYTES", 1024)
    monkeypatch.setattr(linear, "can_pack", lambda device, dtype: can and can_pack(device, dtype))
    monkeypatch.setattr(torch_ops, "can_pack", linear.can_pack)
    exact, loaded = load(llama), load_whole(llama)
    settle(loaded)
    model = loaded.decoder
    assert all(
        len(block.attention.qkv.rows) == 1 and len(next(block.mlps()).up.rows) == 1 for block in model.parts.blocks
    )
    for one, other in zip(model.parts.matrices(), exact.parts.matrices(), strict=True):
        x = torch.randn(3, other.weight.shape[1])
        torch.testing.assert_close(one(x), other(x))


def held(tensor: torch.Tensor) -> float:
    """The share of a tensor's pages that the process holds, as its page table says."""
    if not Path("/proc/self/pagemap").exists() or os.sysconf("SC_PAGESIZE") != 4096:
        pytest.skip("this system does not tell which pages a process holds")
    first, last = -(-tensor.data_ptr() // 4096), (tensor.data_ptr() + tensor.nbytes) // 4096
    assert last - first > 2
    with open("/proc/self/pagemap", "rb") as file:
        file.seek(first * 8)
        entries = struct.iter_unpack("<Q", file.read((last - first) * 8))
        return sum(entry >> 63 for (entry,) in entries) / (last - first)


def test_what_was_copied_leaves_memory(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for again, it comes from the file."""
    monkeypatch.setattr(mapped, "SMALL_BYTES", 0)
    plan = make_plan(load_config(llama), read_headers(llama), "float32")
    mappings = Mapped(plan)
    pages = mappings.pages()
    weights = mapped_tensors(plan, mappings)
    (tokens,) = weights["embed_tokens.weight"]
    expected = tokens.clone()
    assert held(tokens) == 1
    pages.let_go(tokens.data_ptr(), tokens.nbytes)
    assert held(tokens) == 0
    assert torch.equal(tokens, expected)
    own = torch.ones(4096)
    pages.let_go(own.data_ptr(), own.nbytes)
    assert own.sum() == 4096


def test_mapped_weights_are_in_the_page_table_before_they_are_used(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not knows_populate():
        pytest.skip("this kernel cannot map ahead")
    monkeypatch.setattr(mapped, "SMALL_BYTES", 0)
    plan = make_plan(load_config(llama), read_headers(llama), "float32")
    mappings = Mapped(plan)
    pages, weights = mappings.pages(), mapped_tensors(plan, mappings)
    tensors = [part for parts in weights.values() for part in parts if part.nbytes > 4 * 4096]
    assert tensors and not any(held(tensor) for tensor in tensors)
    thread = pages.map_ahead()
    assert thread is not None
    thread.join()
    assert [held(tensor) for tensor in tensors] == [1] * len(tensors)
    gone = Mapped(plan)
    pages = gone.pages()
    del gone  # what nobody uses any more is left alone
    again = pages.map_ahead()
    assert again is not None
    again.join()


def knows_populate() -> bool:
    own = mmap.mmap(-1, 4096)
    try:
        own.madvise(22)
    except OSError:
        return False
    return True


def test_unaligned_tensors_are_read(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = load(copy)
    file = copy / "model.safetensors"
    data = file.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    file.write_bytes(struct.pack("<Q", length + 1) + data[8 : 8 + length] + b" " + data[8 + length :])
    monkeypatch.setattr(mapped, "SMALL_BYTES", 0)
    loaded = load_whole(copy)
    assert same_weights(loaded.decoder, exact) and loaded.report.read_bytes == exact.weight_bytes


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def replaced(file: Path, make: Callable[[Path], None]) -> None:
    file.unlink()
    make(file)


def rewrite_header(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    data = file.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    change(header)
    encoded = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(encoded)) + encoded + data[8 + length :])


EMPTY = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
QUERY = "model.layers.1.self_attn.q_proj.weight"
DAMAGES: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "cut off": (lambda f: f.write_bytes(f.read_bytes()[:-100]), ["ends at byte", "download it again"]),
    "cut in the header": (lambda f: f.write_bytes(f.read_bytes()[:200]), ["header", "download it again"]),
    "empty": (lambda f: f.write_bytes(b""), ["0 bytes, too few for a header", "download it again"]),
    "not JSON": (lambda f: f.write_bytes(struct.pack("<Q", 4) + b"{{{{"), ["not JSON"]),
    "not an object": (lambda f: f.write_bytes(struct.pack("<Q", 2) + b"[]"), ["not a JSON object"]),
    "pointer file": (lambda f: f.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), ["download it again"]),
    "unknown dtype": (lambda f: rewrite_header(f, lambda h: h[QUERY].update(dtype="F7")), ["F7", QUERY]),
    "no dtype": (lambda f: rewrite_header(f, lambda h: h[QUERY].pop("dtype")), [QUERY, "no sense"]),
    "offsets": (lambda f: rewrite_header(f, lambda h: h[QUERY].update(data_offsets=[8, -8])), [QUERY, "no sense"]),
    "negative": (lambda f: rewrite_header(f, lambda h: h[QUERY].update(shape=[-64, -64])), [QUERY, "no sense"]),
    "dimensions": (
        lambda f: rewrite_header(f, lambda h: h[QUERY].update(shape=[2**62] * 100_000)),
        [QUERY, "no sense"],
    ),
    "huge": (lambda f: rewrite_header(f, lambda h: h[QUERY].update(data_offsets=[0, 2**63])), [QUERY, "no sense"]),
    "size": (lambda f: rewrite_header(f, lambda h: h[QUERY].update(data_offsets=[0, 8])), [QUERY, "does not fill"]),
    "beyond": (
        lambda f: rewrite_header(f, lambda h: h[QUERY].update(data_offsets=[1 << 40, (1 << 40) + 64 * 64 * 4])),
        [QUERY, "reaches byte"],
    ),
    "overlap": (
        lambda f: rewrite_header(f, lambda h: h.update({"a" + chr(27): h[QUERY]})),
        [QUERY, r"a\x1b", "overlap", "download it again"],
    ),
    "too deep": (lambda f: rewrite_header(f, lambda h: h.update(x=nested(300))), ["nested more than", "not JSON"]),
    "a FIFO": (lambda f: replaced(f, os.mkfifo), ["not a regular file"]),
    "a device": (lambda f: replaced(f, lambda f: f.symlink_to("/dev/zero")), ["not a regular file"]),
    "a directory": (lambda f: replaced(f, Path.mkdir), ["Is a directory"]),
    "missing": (lambda f: rewrite_header(f, lambda h: h.pop(QUERY)), ["lacks", QUERY, "LlamaForCausalLM"]),
    "shape": (
        lambda f: rewrite_header(f, lambda h: h[QUERY].update(shape=[32, 128])),
        [QUERY, "[32, 128]", "[64, 64]"],
    ),
    "integers": (lambda f: rewrite_header(f, lambda h: h[QUERY].update(dtype="I32")), [QUERY, "I32"]),
    "left over": (
        lambda f: rewrite_header(f, lambda h: h.update({"model.extra.weight": EMPTY})),
        ["model.extra.weight", "does not know"],
    ),
    "gone": (lambda f: f.unlink(), ["no *.safetensors"]),
    "only gguf": (lambda f: f.rename(f.with_name("model.gguf")), [".gguf", "safetensors"]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoints(damage: str, copy: Path) -> None:
    spoil, words = DAMAGES[damage]
    spoil(copy / "model.safetensors")
    with pytest.raises(ModelError) as caught:
        load(copy)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


COUNTS: dict[str, tuple[str, dict[str, Any], str]] = {
    "many layers": ("llama", {"num_hidden_layers": 10_000}, "num_hidden_layers=10000, but the files have 3 layers"),
    "many windows": ("mistral", {"num_hidden_layers": 10_000, "sliding_window": 5}, "but the files have 3 layers"),
    "few layers": ("llama", {"num_hidden_layers": 2}, "num_hidden_layers=2, but the files have 3 layers"),
    "vocab": ("llama", {"vocab_size": 2 * 10**9}, "vocab_size=2000000000, but model.embed_tokens.weight has 199 rows"),
    "padded vocab": ("llama", {"vocab_size": 190}, "vocab_size=190, but model.embed_tokens.weight has 199 rows"),
    "hidden": ("llama", {"hidden_size": 128, "head_dim": 16}, "hidden_size=128, but model.embed_tokens.weight has 64"),
    "heads": ("llama", {"num_attention_heads": 32, "head_dim": 16}, "num_attention_heads=32 of head_dim=16: 512, but"),
    "kv heads": ("llama", {"num_key_value_heads": 4}, "num_key_value_heads=4 of head_dim=16: 64, but"),
    "head size": (
        "llama",
        {"head_dim": 32},
        "head_dim=32: 128, but model.layers.0.self_attn.q_proj.weight has 64",
    ),
    "mlp": ("llama", {"intermediate_size": 10**9}, "intermediate_size=1000000000, but model.layers.0.mlp.up_proj"),
    "opt mlp": ("opt", {"ffn_dim": 97}, "ffn_dim=97, but model.decoder.layers.0.fc1.weight has 96 rows"),
    "opt layers": ("opt", {"num_hidden_layers": 10_000}, "num_hidden_layers=10000, but the files have 3 layers"),
    "opt embedding": ("opt_post_norm", {"word_embed_proj_dim": 48}, "word_embed_proj_dim=48, but"),
    "opt positions": ("opt", {"max_position_embeddings": 10**9}, "max_position_embeddings and its offset: 1000000002"),
}


@pytest.mark.parametrize("case", COUNTS)
def test_counts_of_the_configuration_are_compared_with_the_files(case: str, tmp_path: Path) -> None:
    """In one line, before anything of their size is made: neither memory nor time may grow with them."""
    family, changes, words = COUNTS[case]
    directory = make_tiny(family, tmp_path)
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelError) as caught:
        load(directory)
    assert words in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 700
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "KiB"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda h: [h.pop(name) for name in sorted(h) if "q_proj" in name or "mlp" in name], "lacks {} and 9 more: "),
        (
            lambda h: h.update({f"model.layers.0.extra{number}.weight": EMPTY for number in range(8)}),
            "has tensors that LlamaForCausalLM does not know: {} and 5 more",
        ),
        (
            lambda h: [value.update(dtype="I32") for name, value in h.items() if "proj" in name],
            "does not fit the weight files: {} and 18 more",
        ),
    ],
    ids=["missing", "extra", "wrong"],
)
def test_the_first_three_tensors_are_named_and_how_many(copy: Path, change: Any, says: str) -> None:
    rewrite_header(copy / "model.safetensors", change)
    with pytest.raises(ModelError) as caught:
        load(copy)
    before, after = says.split("{}")
    named = str(caught.value).partition(before)[2].partition(after)[0]
    assert named and after in str(caught.value)
    assert named.count("model.layers.") == 3


def test_a_layer_that_is_missing_among_others(copy: Path) -> None:
    file = copy / "model.safetensors"
    rewrite_header(file, lambda h: [h.pop(name) for name in list(h) if ".layers.1." in name])
    with pytest.raises(ModelError, match=r"num_hidden_layers=3, but the files lack model\.layers\.1"):
        load(copy)
    rewrite_header(file, lambda h: h.update({"model.layers.999999999.x": EMPTY}))
    with pytest.raises(ModelError, match="the files have 1000000000 layers"):
        load(copy)


def test_missing_shard_and_broken_index(tmp_path: Path) -> None:
    directory = make_tiny("llama", tmp_path, max_shard_size="100KB")
    index = directory / "model.safetensors.index.json"
    weight_files(directory)[0].unlink()
    with pytest.raises(ModelError, match=r"00001-of-.*download the model again"):
        load(directory)
    for wrong in ('{"weight_map": 3}', '{"weight_map": {}}', '{"weight_map": {"a": 3}}', '{"other": 1}'):
        index.write_text(wrong)
        with pytest.raises(ModelError, match="weight_map"):
            load(directory)
    for name in ("../model.safetensors", "/etc/passwd", "a/b.safetensors", "..", ".hidden", "a\\\\b", "a\\nb"):
        index.write_text(f'{{"weight_map": {{"a": "{name}"}}}}')
        with pytest.raises(ModelError, match="which is no file beside it"):
            load(directory)
    index.write_text('{"weight_map": 3}')
    with pytest.raises(ModelError, match="weight_map"):
        load(directory)


def test_an_index_that_is_stale(tmp_path: Path) -> None:
    """Where the files have other names than the index says, it says which."""
    directory = make_tiny("llama", tmp_path, max_shard_size="100KB")
    for number, file in enumerate(weight_files(directory)):
        file.rename(file.with_name(f"part-{number}.safetensors"))
    with pytest.raises(ModelError, match=r"lacks model-00001-of-.*but has part-0\.safetensors.*the index is stale"):
        load(directory)


def test_a_whole_file_is_taken_before_an_index(llama: Path, copy: Path) -> None:
    """As transformers does; whatever the index says, and whether its files are there or not."""
    whole = load(llama)
    index = copy / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}')
    assert same_weights(load(copy), whole)
    (copy / "model-00001-of-00002.safetensors").write_bytes(b"of an earlier form")
    assert same_weights(load(copy), whole)
    index.write_text("{")
    assert same_weights(load(copy), whole)


def test_copies_of_other_programs_are_left_alone(llama: Path, copy: Path) -> None:
    whole = copy / "model.safetensors"
    (copy / "consolidated.safetensors").write_bytes(b"of another form")
    (copy / "adapter_model.safetensors").write_bytes(b"of a LoRA")
    whole.rename(copy / "weights.safetensors")
    assert same_weights(load(copy), load(llama))


def test_files_of_a_cache_are_links(llama: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshots" / "0"
    snapshot.mkdir(parents=True)
    for file in llama.iterdir():
        (snapshot / file.name).symlink_to(file)
    assert same_weights(load(snapshot), load(llama))


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize("kind", ["fifo", "device", "deep", "large"])
def test_json_files_that_are_none(name: str, kind: str, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither is waited for, read without end, or followed into the depth; the line names the file."""
    (copy / "model.safetensors").rename(copy / "weights.safetensors")
    file = copy / name
    file.unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(file)
    elif kind == "device":
        file.symlink_to("/dev/zero")
    else:
        file.write_text('{"a":' * 100_000 if kind == "deep" else " " * 2000)
        monkeypatch.setattr(read_config_module, "MAX_JSON_BYTES", 1000 if kind == "large" else 64 << 20)
        if kind == "large" and name != "config.json":
            (copy / "config.json").write_text(json.dumps(json.loads((copy / "config.json").read_text()))[:1000])
    words = {
        "fifo": "not a regular file",
        "device": "not a regular file",
        "deep": "nested more than",
        "large": "2,000 bytes",
    }
    with pytest.raises(ModelError, match=words[kind]) as caught:
        load(copy)
    assert "\n" not in str(caught.value) and name in str(caught.value)


def test_file_that_shrinks_while_it_is_read(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = copy / "model.safetensors"
    config = load_config(copy)
    plan = make_plan(config, read_headers(copy), "float32")
    file.write_bytes(file.read_bytes()[:-1000])
    reading = reader.WeightRead(plan, lambda: Warming(Mapped(plan)))
    with pytest.raises(ModelError, match="became shorter"):
        reading.wait()
    monkeypatch.setattr(mapped, "SMALL_BYTES", 0)
    with pytest.raises(ModelError, match="became shorter"):
        Mapped(plan)


def test_header_offsets_count_from_the_start_of_the_file(llama: Path) -> None:
    file = llama / "model.safetensors"
    entry = read_header(file)["model.norm.weight"]
    data = file.read_bytes()[entry.offset : entry.offset + entry.nbytes]
    assert torch.equal(torch.frombuffer(bytearray(data), dtype=torch.float32), load_file(file)["model.norm.weight"])


@pytest.mark.parametrize(
    ("requested", "checkpoint", "device", "has_bfloat16", "expected"),
    [
        ("auto", "bfloat16", "cpu", True, torch.bfloat16),
        ("auto", "float16", "cpu", True, torch.bfloat16),
        ("auto", "float32", "cpu", True, torch.float32),
        ("auto", "bfloat16", "cpu", False, torch.float32),
        ("auto", "bfloat16", "cuda", False, torch.bfloat16),
        ("auto", "float16", "cuda:0", False, torch.float16),
        ("auto", "float32", "cuda", False, torch.bfloat16),
        ("float32", "bfloat16", "cpu", True, torch.float32),
        ("float16", "bfloat16", "cpu", True, torch.float16),
    ],
)
def test_choice_of_dtype(
    requested: str, checkpoint: str, device: str, has_bfloat16: bool, expected: torch.dtype, monkeypatch: Any
) -> None:
    monkeypatch.setattr(dtype_module, "cpu_has_bfloat16", lambda: has_bfloat16)
    assert getattr(torch, choose_dtype_name(requested, checkpoint, device)) == expected


def test_unknown_dtype_is_refused() -> None:
    with pytest.raises(ModelError, match=r"int3.*bfloat16"):
        choose_dtype_name("int3", "bfloat16", "cpu")


def test_reading_starts_without_torch(llama: Path) -> None:
    """Finding, planning and reading a model must not wait for torch (nor transformers) to be imported."""
    code = (
        "import sys; from pathlib import Path\n"
        "from ember.engine.loading.resolve import resolve_model\n"
        "from ember.engine.loading.files import prefetch\n"
        "from ember.engine.loading.dtype import choose_dtype_name\n"
        "from ember.engine.loading.load import begin\n"
        "from ember.engine.description.read_config import load_config\n"
        "path = resolve_model(sys.argv[1]); prefetch(path); config = load_config(path)\n"
        "started = begin(path, config, choose_dtype_name('auto', config.dtype, 'cpu'), 'cpu')\n"
        "started.reading.wait()\n"
        "assert not {'torch', 'numpy', 'huggingface_hub', 'transformers', 'safetensors'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(llama)], check=True)


def test_prefetch_leaves_errors_to_the_read(tmp_path: Path) -> None:
    prefetch(tmp_path)
    prefetch(tmp_path / "absent")
