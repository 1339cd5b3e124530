"""Whose code computes a model: MODEL_IMPL and TRUST_REMOTE_CODE, and what cannot run through transformers."""

import contextlib
import io
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers

import ember.demo
from ember.boot import Timeline
from ember.cli.inspect import InspectError, Text, _lines, report
from ember.engine.core.assemble import assemble
from ember.engine.core.boot import open_model
from ember.engine.core.prediction import Target, predict
from ember.engine.errors import ModelError
from ember.engine.fallback import construct
from ember.engine.fallback.model import ForeignModel
from ember.engine.models.decoder import Decoder
from ember.settings import load_settings
from ember.wire import Configure, Generate, Ready
from tests.engine_core.inline import NUM_OUTPUT, generated, greedy, make_engine, run, tokens
from tests.engine_models.tiny import _COMMON, make_tiny, rewrite_config
from tests.fallback.models import FAMILIES, make_model

PROMPT = [9, 81, 33, 20, 77, 150, 11, 12, 13, 64, 5, 99]


def said(engine) -> list[int]:
    return tokens(run(engine, [Generate(1, PROMPT, greedy(NUM_OUTPUT))])[1, 0])


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "gpt_oss", "mixtral", "llama4"])
def test_a_known_family_says_the_same_through_transformers(family, tmp_path):
    directory = make_tiny(family, tmp_path)
    ours, theirs = make_engine(directory, model_impl="ember"), make_engine(directory, model_impl="transformers")
    assert isinstance(ours.runner.model, Decoder) and isinstance(theirs.runner.model, ForeignModel)
    assert said(theirs) == said(ours)


def test_auto_takes_embers_own_code_where_it_knows_the_family(tmp_path):
    assert isinstance(make_engine(make_tiny("llama", tmp_path / "known")).runner.model, Decoder)
    unknown = make_model("BitNetForCausalLM", tmp_path / "unknown")
    assert isinstance(make_engine(unknown).runner.model, ForeignModel)
    with pytest.raises(ModelError, match="BitNetForCausalLM is not supported; supported are LlamaForCausalLM"):
        make_engine(unknown, model_impl="ember")


def test_the_boot_says_who_computes_and_what_it_cost(tmp_path):
    directory = make_model("BitNetForCausalLM", tmp_path, dtype="bfloat16")
    message, timeline = Configure(model=str(directory), device="cpu", dtype="bfloat16", num_blocks=50), Timeline("test")
    engine, ready = assemble(message, open_model(message, timeline, lambda located: None), timeline)
    assert isinstance(ready, Ready)
    assert ready.operators == f"torch, through transformers {transformers.__version__}"
    assert (ready.architecture, ready.dtype, ready.vocab_size) == ("BitNetForCausalLM", "bfloat16", 199)
    phases = {phase["name"]: phase for phase in timeline.report()["phases"]}
    assert phases["import_transformers"]["detail"]["version"] == transformers.__version__ and "trial" in phases
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16).eval()
    found, expected = said(engine), generated(model, PROMPT)
    assert found[:3] == expected[:3]  # roundings differ


def test_weights_that_need_no_conversion_are_used_from_the_file(tmp_path):
    directory = make_model("MoshiForCausalLM", tmp_path, hidden_size=512, ffn_dim=2048, num_hidden_layers=1)
    model = make_engine(directory).runner.model
    head = model.lm.lm_head.weight
    assert head.data_ptr() != model.lm.model.embed_tokens.weight.data_ptr()
    maps = Path("/proc/self/maps").read_text().splitlines()
    gate = model.lm.model.layers[0].mlp.fc1.weight.data_ptr()
    (line,) = (line for line in maps if int(line.split("-")[0], 16) <= gate < int(line.split()[0].split("-")[1], 16))
    assert line.endswith("model.safetensors")


REFUSED = {
    "recurrent": ("RwkvForCausalLM", {"model_type": "rwkv"}, "a recurrent state of its own beside the KV cache"),
    "no interface": ("XGLMForCausalLM", {}, "attention does not go through transformers' attention interface"),
    "own masks": ("DogeForCausalLM", {}, "masks in a way of its own"),
    "some layers": ("MiniMaxForCausalLM", {}, "of its 3 layers do not call transformers' attention interface"),
    "encoder": ("BartForConditionalGeneration", {"is_encoder_decoder": True}, "not supported by Ember's own code"),
    "not causal": ("BertLMHeadModel", {"is_decoder": False}, "a mask of its own"),
    "quantized": ("BitNetForCausalLM", {"quantization_config": {"quant_method": "bitnet"}}, "bitnet quantized"),
    "multimodal": ("NeverSeenForConditionalGeneration", {"text_config": {"model_type": "x"}}, "this one is multimodal"),
    "multimodal encoder": (
        "NeverSeenForConditionalGeneration",
        {"text_config": {"model_type": "bitnet"}, "is_encoder_decoder": True},
        "is an encoder and a decoder",
    ),
    "nowhere": ("NeverSeenForCausalLM", {}, "transformers has no causal language model of this name either"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_run_is_refused_by_name(case, tmp_path):
    name, fields, message = REFUSED[case]
    known = getattr(transformers, name, None)
    if known is not None and case not in ("recurrent", "encoder", "quantized"):
        make_model(name, tmp_path, **fields)
    else:
        (tmp_path / "config.json").write_text(json.dumps({"architectures": [name], "vocab_size": 9, **fields}))
    with pytest.raises(ModelError, match=name) as caught:
        make_engine(tmp_path)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"cpu_weights": "int8"}, "CPU_WEIGHTS=int8"),
        ({"kv_cache_dtype": "fp8"}, "KV_CACHE_DTYPE=fp8"),
        ({"quantization": "fp8"}, "QUANTIZATION=fp8"),
        ({"max_model_len": 512}, "MAX_MODEL_LEN=512"),
    ],
)
def test_settings_that_do_not_fit_are_boot_errors(tmp_path, settings, named):
    with pytest.raises(ModelError, match=named):
        make_engine(make_model("BitNetForCausalLM", tmp_path), **settings)


def test_a_rope_that_depends_on_the_batch_is_served_up_to_its_original_length(tmp_path):
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4, "original_max_position_embeddings": 64}
    directory = make_model("DiffLlamaForCausalLM", tmp_path, rope_parameters=rope)
    with pytest.raises(ModelError, match="rope type dynamic .* set MAX_MODEL_LEN to at most 64"):
        make_engine(directory)
    assert make_engine(directory, max_model_len=64).limits.max_model_len == 64


def test_a_multimodal_class_is_served_as_text_where_its_language_model_is_one_of_transformers(tmp_path):
    text = {**_COMMON, **FAMILIES["AriaTextForCausalLM"], "initializer_range": 0.2}
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.AriaConfig(
        text_config=text,
        vision_config={**vision, "image_size": 28, "patch_size": 14},
        projector_patch_to_query_dict={4: 2},
    )
    torch.manual_seed(0)
    model = transformers.AriaForConditionalGeneration(config).eval()
    model.save_pretrained(tmp_path)
    engine = make_engine(tmp_path)
    assert said(engine) == generated(model, PROMPT)
    config = engine.runner.model.config
    assert (config.architecture, config.text_architecture) == ("AriaForConditionalGeneration", "AriaTextForCausalLM")
    predicted = predict(Configure(model=str(tmp_path)), [Target("here", "cpu", 1 << 30, 1 << 30)])
    assert predicted.skipped_tensors > 0 and predicted.parameters == engine.runner.model.num_parameters


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path):
    directory = make_model("BitNetForCausalLM", tmp_path, num_hidden_layers=2)
    rewrite_config(directory, num_hidden_layers=3)
    with pytest.raises(ModelError, match=r"the checkpoint lacks .*layers\.2\."):
        make_engine(directory)


def test_code_of_the_repository_runs_if_it_is_trusted(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    directory = make_tiny("llama", tmp_path / "model")
    (directory / "modeling_finch.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel\n\n\nclass FinchConfig(LlamaConfig):\n"
        '    model_type = "finch"\n\n\nclass FinchModel(LlamaModel):\n'
        "    def forward(self, input_ids=None, **options):\n"
        "        return super().forward(input_ids=input_ids, **options)\n\n\n"
        "class FinchForCausalLM(LlamaForCausalLM):\n    config_class = FinchConfig\n\n"
        "    def __init__(self, config):\n        super().__init__(config)\n"
        "        self.model = FinchModel(config)\n        self.post_init()\n"
    )
    expected = said(make_engine(directory))
    code = {"AutoConfig": "modeling_finch.FinchConfig", "AutoModelForCausalLM": "modeling_finch.FinchForCausalLM"}
    rewrite_config(directory, model_type="finch", architectures=["FinchForCausalLM"], auto_map=code)
    with pytest.raises(ModelError, match="'modeling_finch.FinchForCausalLM'.*TRUST_REMOTE_CODE=true"):
        make_engine(directory)
    assert said(make_engine(directory, trust_remote_code=True)) == expected
    (directory / "modeling_finch.py").write_text("import a_module_that_nobody_has\n")
    shutil.rmtree(tmp_path / "modules")
    with pytest.raises(ModelError, match=r"its own code cannot be imported.*a_module_that_nobody_has"):
        make_engine(directory, trust_remote_code=True)
    shutil.rmtree(tmp_path / "modules", ignore_errors=True)
    (directory / "modeling_finch.py").write_text("import sys\n\nsys.exit('no')\n")
    with pytest.raises(ModelError, match=r"its own code cannot be imported.*SystemExit\(no\)"):
        make_engine(directory, trust_remote_code=True)


def test_code_whose_last_layer_alone_looks_at_the_token_before_is_refused(tmp_path, monkeypatch):
    """It says something else at the first token of each step alone, which are the fewer ones."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    directory = make_tiny("llama", tmp_path / "model")
    (directory / "modeling_wren.py").write_text(
        "from torch.nn.functional import pad\nfrom transformers import LlamaConfig, LlamaForCausalLM, LlamaModel\n\n\n"
        'class WrenConfig(LlamaConfig):\n    model_type = "wren"\n\n\nclass WrenModel(LlamaModel):\n'
        "    def forward(self, input_ids=None, **options):\n"
        "        made = super().forward(input_ids=input_ids, **options)\n"
        "        hidden = made.last_hidden_state\n"
        "        made.last_hidden_state = hidden + pad(hidden[:, :-1], (0, 0, 1, 0))\n        return made\n\n\n"
        "class WrenForCausalLM(LlamaForCausalLM):\n    config_class = WrenConfig\n\n"
        "    def __init__(self, config):\n        super().__init__(config)\n"
        "        self.model = WrenModel(config)\n        self.post_init()\n"
    )
    code = {"AutoConfig": "modeling_wren.WrenConfig", "AutoModelForCausalLM": "modeling_wren.WrenForCausalLM"}
    rewrite_config(directory, model_type="wren", architectures=["WrenForCausalLM"], auto_map=code)
    with pytest.raises(ModelError, match=r"^WrenForCausalLM .*something else than attention"):
        make_engine(directory, trust_remote_code=True)


@pytest.mark.parametrize("place", ["__init__", "forward"])
def test_code_that_ends_the_process_ends_the_boot_with_a_message(tmp_path, monkeypatch, place):
    from transformers import BitNetModel

    def leave(*given, **named):
        raise SystemExit(3)

    directory = make_model("BitNetForCausalLM", tmp_path)
    monkeypatch.setattr(BitNetModel, place, leave)
    with pytest.raises(ModelError, match=r"^BitNetForCausalLM cannot be served .*SystemExit\(3\)"):
        make_engine(directory)


def test_code_of_another_repository_is_refused(tmp_path):
    directory = make_model("BitNetForCausalLM", tmp_path)
    code = {"AutoConfig": "someone/else--modeling_finch.FinchConfig"}
    code["AutoModelForCausalLM"] = "someone/else--modeling_finch.FinchForCausalLM"
    rewrite_config(directory, model_type="finch", architectures=["FinchForCausalLM"], auto_map=code)
    with pytest.raises(ModelError, match="another repository .*someone/else--modeling_finch.*put the files beside"):
        make_engine(directory, trust_remote_code=True)


def test_without_transformers_the_message_says_what_to_install(tmp_path, monkeypatch):
    directory = make_model("BitNetForCausalLM", tmp_path)
    monkeypatch.setattr("ember.engine.description.foreign._source_directory", lambda: None)
    with pytest.raises(ModelError, match=r"BitNetForCausalLM .*pip install 'worker-ember\[transformers\]'"):
        make_engine(directory)


def test_inspect_says_through_transformers_and_what_is_known(tmp_path):
    directory = make_model("DiffLlamaForCausalLM", tmp_path)
    predicted = predict(Configure(model=str(directory)), [Target("here", "cpu", 1 << 30, 1 << 30)])
    assert predicted.through_transformers and predicted.architecture == "DiffLlamaForCausalLM"
    (device,) = predicted.devices
    assert device.fits and device.operators_reason == "through transformers" and device.weight_bytes
    lines = list(_lines(predicted, Text("none", "", "none", "", "none", ""), []))
    assert any("a trial at the boot decides whether it can be served" in line for line in lines)
    engine = make_engine(directory)
    assert predicted.parameters == engine.runner.model.num_parameters
    rewrite_config(directory, num_attention_heads=None, num_key_value_heads=None)
    (device,) = predict(Configure(model=str(directory)), [Target("here", "cpu", 1 << 30, 1 << 30)]).devices
    assert not device.fits and "config.json does not tell the sizes" in str(device.reason)


@pytest.mark.parametrize(
    ("name", "fields", "reason"),
    [
        ("DogeForCausalLM", {}, "it computes with masks in a way of its own"),
        ("BertLMHeadModel", {"is_decoder": False}, "a mask of its own"),
        ("BitNetForCausalLM", {}, None),
        ("AriaTextForCausalLM", {}, None),
    ],
)
def test_inspect_says_what_the_boot_would_say_of_the_code(name, fields, reason, tmp_path, monkeypatch):
    directory = make_model(name, tmp_path, **{**FAMILIES.get(name, {}), **fields})
    shutil.copy(Path(ember.demo.__file__).parent / "tokenizer.json", directory)

    def run_here(command, *, input, **options):  # the process would import torch and transformers again
        assert command[1:] == ["-P", "-m", "ember.engine.fallback.construct"]
        said = io.StringIO()
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(input)))
        with contextlib.redirect_stdout(said):
            construct.main()
        return SimpleNamespace(stdout=said.getvalue())

    monkeypatch.setattr("ember.cli.inspect.subprocess.run", run_here)
    settings = load_settings({"model_name": str(directory)})
    if reason is None:
        assert "through transformers" in report(settings, [], as_json=False)
    else:
        with pytest.raises(InspectError, match=f"{name} cannot be served through transformers.*{reason}"):
            report(settings, [], as_json=False)


def test_dummy_weights_need_no_file(tmp_path):
    directory = make_model("BitNetForCausalLM", tmp_path)
    (directory / "model.safetensors").unlink()
    assert said(make_engine(directory, load_format="dummy")) == said(make_engine(directory, load_format="dummy"))
