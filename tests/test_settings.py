"""Settings: sources and their order, forms of values, and errors a person can act on."""

import pytest

from ember.flags import flag_names
from ember.settings import Settings, SettingsError, load_settings, variable_names, warn_unused
from ember.settings.known import _MET_ANYWAY, KNOWN_UNUSED


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for field in Settings.model_fields:
        for alias in Settings.model_fields[field].validation_alias.choices:
            monkeypatch.delenv(alias, raising=False)
    monkeypatch.delenv("VLLM_CONFIG_FILE", raising=False)


@pytest.mark.parametrize(
    ("name", "value", "field", "expected"),
    [
        ("MODEL_NAME", " org/model ", "model_name", "org/model"),
        ("MODEL", "org/model", "model_name", "org/model"),
        ("MODEL_NAME", "", "model_name", None),
        ("MODEL_REVISION", "None", "model_revision", None),
        ("MAX_MODEL_LEN", "4096", "max_model_len", 4096),
        ("MAX_MODEL_LEN", "32k", "max_model_len", 32_000),
        ("MAX_MODEL_LEN", "32K", "max_model_len", 32_768),
        ("MAX_MODEL_LEN", "auto", "max_model_len", None),
        ("MAX_MODEL_LEN", "-1", "max_model_len", None),
        ("KV_CACHE_MEMORY_BYTES", "2G", "kv_cache_memory_bytes", 2 << 30),
        ("MAX_NUM_BATCHED_TOKENS", "0", "max_num_batched_tokens", None),
        ("BLOCK_SIZE", "32", "block_size", 32),
        ("DTYPE", "BF16", "dtype", "bfloat16"),
        ("DTYPE", "half", "dtype", "float16"),
        ("ENABLE_PREFIX_CACHING", "false", "enable_prefix_caching", False),
        ("ENABLE_PREFIX_CACHING", "1", "enable_prefix_caching", True),
        ("SERVED_MODEL_NAME", "a, b", "served_model_name", ["a", "b"]),
        ("OVERRIDE_GENERATION_CONFIG", '{"temperature": 0.5}', "override_generation_config", {"temperature": 0.5}),
        ("SEED", "7", "seed", 7),
    ],
)
def test_forms_of_values(monkeypatch, name, value, field, expected):
    monkeypatch.setenv(name, value)
    assert getattr(load_settings(), field) == expected


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("MAX_MODEL_LEN", "abc", "integer"),
        ("MAX_MODEL_LEN", "0", "greater than or equal to 1"),
        ("GPU_MEMORY_UTILIZATION", "3", "less than or equal to 1"),
        ("GPU_MEMORY_UTILIZATION", "0", "greater than 0"),
        ("BLOCK_SIZE", "17", "8, 16, 32, 64 or 128"),
        ("DTYPE", "int3", "'bfloat16'"),
        ("PORT", "99999", "65535"),
        ("ENABLE_PREFIX_CACHING", "maybe", "boolean"),
        ("OVERRIDE_GENERATION_CONFIG", "{x", "not valid JSON"),
        ("SCHEDULING_POLICY", "lifo", "'fcfs' or 'priority'"),
        ("MAX_MODEL_LEN", "1e400k", "integer"),
        ("KV_CACHE_MEMORY_BYTES", "99999999999999999999", "less than or equal to"),
        ("SEED", "999999999999999999999999", "less than or equal to"),
        ("STEP_TIMEOUT", "inf", "finite"),
        ("STEP_TIMEOUT", "nan", "finite"),
        ("STEP_TIMEOUT", "1e300", "less than or equal to 86400"),
        ("STEP_TIMEOUT", "-1", "greater than or equal to 0"),
        ("DRAIN_TIMEOUT", "inf", "finite"),
        ("DRAIN_TIMEOUT", "1e12", "less than or equal to 86400"),
        ("GPU_MEMORY_UTILIZATION", "nan", "finite"),
        ("CHAT_TEMPLATE_RENDER_TIMEOUT", "nan", "finite"),
        ("BATCH_SIZE_GROWTH_FACTOR", "nan", "finite"),
        ("MAX_MODEL_LEN", "abc", "32k (32000), 32K (32768) or auto"),
        ("KV_CACHE_MEMORY_BYTES", "lots", "4G"),
        ("MAX_REQUEST_BYTES", "zz", "32M"),
        ("MAX_REQUEST_BYTES", "auto", "32M"),
        ("HEALTH_CHECK_PATH", "ping", "begin with a slash, such as /ping"),
        ("PLATFORM_STORE", "mysql:x", "memory or sqlite:FILE"),
        ("PLATFORM_STORE", "sqlite:", "memory or sqlite:FILE"),
        ("DEFAULT_CHAT_TEMPLATE_KWARGS", "notjson", '{"enable_thinking": false}'),
        ("DEFAULT_CHAT_TEMPLATE_KWARGS", "[1]", '{"enable_thinking": false}'),
        ("OTLP_TRACES_ENDPOINT", "foo", "http://collector:4318/v1/traces"),
        ("OTLP_TRACES_ENDPOINT", "grpc://collector:4317", "http://collector:4318/v1/traces"),
        ("OTLP_TRACES_ENDPOINT", "http://", "http://collector:4318/v1/traces"),
        ("OTLP_TRACES_ENDPOINT", "http://collector:port/v1", "http://collector:4318/v1/traces"),
        ("ALLOWED_ORIGINS", "foo", "https://example.com"),
        ("ALLOWED_ORIGINS", "https://example.com/page", "https://example.com"),
        ("ALLOWED_ORIGINS", "https://example.com:port", "https://example.com"),
        ("ALLOWED_ORIGINS", '["*"', "https://example.com"),
    ],
)
def test_a_wrong_value_is_one_line_with_name_value_and_what_is_allowed(monkeypatch, name, value, says):
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    message = str(caught.value)
    assert message.startswith(f"{name}={value}: ") and says in message and "\n" not in message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MAX_MODEL_LEN", "abc"),
        ("HEALTH_CHECK_PATH", "ping"),
        ("PLATFORM_STORE", "mysql:x"),
        ("DEFAULT_CHAT_TEMPLATE_KWARGS", "notjson"),
        ("API_KEY", ","),
    ],
)
def test_errors_speak_to_people_and_not_of_their_making(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert not any(inner in str(caught.value).lower() for inner in ("value error", "pattern", "^", "unable to parse"))


@pytest.mark.parametrize(
    ("name", "value", "place"),
    [
        ("SERVED_MODEL_NAME", "a,\udce9x", "SERVED_MODEL_NAME.1"),  # a byte that is not UTF-8
        ("HF_OVERRIDES", r'{"id2label": {"0": "\ud800"}}', "HF_OVERRIDES.id2label.0"),
    ],
)
def test_texts_that_cannot_be_written_again_are_refused(monkeypatch, name, value, place):
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=f"^{place} is not UTF-8 text"):
        load_settings()


def test_a_file_of_keys_that_is_missing_says_what_it_is_for(monkeypatch):
    monkeypatch.setenv("API_KEY_FILE", "/nope")
    with pytest.raises(SettingsError, match=r"^API_KEY_FILE=/nope: No such file .*one key a line.*unset") as caught:
        load_settings()
    assert "\n" not in str(caught.value)


def test_a_configuration_file_that_is_missing_says_what_it_is_for(monkeypatch):
    monkeypatch.setenv("VLLM_CONFIG_FILE", "/nope.yaml")
    with pytest.raises(SettingsError, match=r"^VLLM_CONFIG_FILE=/nope.yaml: No such file .*YAML.*unset"):
        load_settings()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("*", ["*"]),
        ('["*"]', ["*"]),  # as vLLM takes it
        ("https://a.example, http://LOCALHOST:3000/", ["https://a.example", "http://localhost:3000"]),
        ("chrome-extension://abc", ["chrome-extension://abc"]),
        ("http://[::1]:3000", ["http://[::1]:3000"]),
    ],
)
def test_origins_are_kept_as_browsers_send_them(monkeypatch, value, expected):
    monkeypatch.setenv("ALLOWED_ORIGINS", value)
    assert load_settings().allowed_origins == expected


def test_the_alias_that_was_set_is_the_one_that_is_named(monkeypatch):
    monkeypatch.setenv("VLLM_MAX_STOP_STRINGS", "x")
    with pytest.raises(SettingsError, match="^VLLM_MAX_STOP_STRINGS=x: "):
        load_settings()


def test_command_line_beats_environment_beats_file(monkeypatch, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("model: from-file\nmax-model-len: 100\nblock_size: 8\n")
    monkeypatch.setenv("VLLM_CONFIG_FILE", str(file))
    monkeypatch.setenv("MAX_MODEL_LEN", "200")
    monkeypatch.setenv("BLOCK_SIZE", "32")
    settings = load_settings({"block_size": 64, "port": None})
    assert (settings.model_name, settings.max_model_len, settings.block_size) == ("from-file", 200, 64)


def test_a_command_line_of_vllm(monkeypatch):
    monkeypatch.setenv("MAX_MODEL_LEN", "200")
    monkeypatch.setenv("BLOCK_SIZE", "32")
    line = "--max-model-len 300 --served-model-name a 'b' --no-enable-prefix-caching --model=m/n --max_num_seqs=5 "
    line += """-q awq --hf-overrides '{"a": 1}' --enforce-eager --seed -1 --block-size='' --port 1 --port 9"""
    monkeypatch.setenv("VLLM_EXTRA_ARGS", line)
    settings = load_settings({"seed": 3})
    assert (settings.max_model_len, settings.served_model_name, settings.model_name) == (300, ["a", "b"], "m/n")
    assert (settings.enable_prefix_caching, settings.enforce_eager, settings.max_num_seqs) == (False, True, 5)
    assert (settings.quantization, settings.hf_overrides) == ("awq", {"a": 1})
    assert (settings.seed, settings.block_size, settings.port) == (3, 32, 9)
    assert warn_unused() == []
    extra = {"VLLM_EXTRA_ARGS": "-tp 2 -pp 1 --novel x --swap-space=4 --compilation-config.mode 3"}
    lines = warn_unused(extra)
    named = ["-tp", "--novel", "--swap-space", "--compilation-config.mode"]
    assert [line.partition(" in VLLM_EXTRA_ARGS has no effect: ")[0] for line in lines] == named
    assert [line.partition("effect: ")[2] for line in lines][1:3] == ["unknown setting", KNOWN_UNUSED["SWAP_SPACE"]]
    lines = warn_unused({"VLLM_EXTRA_ARGS": "-O3 -cc.mode 3 -dcp 2 --config x --moe-backend y --optimization-level 2"})
    assert len(lines) == 6 and not [line for line in lines if "unknown" in line]
    assert warn_unused({"CONFIG": "x", "MASTER_ADDR": "y"}) == []


@pytest.mark.parametrize(
    ("line", "says"), [("--api-key 'planted", "closing quotation"), ("planted --x", "before every")]
)
def test_a_command_line_that_is_none(monkeypatch, line, says):
    monkeypatch.setenv("VLLM_EXTRA_ARGS", line)
    with pytest.raises(SettingsError, match=f"^VLLM_EXTRA_ARGS: .*{says}") as caught:
        load_settings()
    assert "planted" not in str(caught.value)


@pytest.mark.parametrize("field", Settings.model_fields)
def test_the_file_has_every_setting_under_the_names_of_its_flags_and_variables(monkeypatch, tmp_path, caplog, field):
    file = tmp_path / "config.yaml"
    monkeypatch.setenv("VLLM_CONFIG_FILE", str(file))
    for name in [flag.removeprefix("--") for flag in flag_names(field)] + variable_names(field):
        file.write_text(f"{name}: [[{{}}]]\n")  # of no setting's form, so that each that is read complains
        with pytest.raises(SettingsError):
            load_settings()
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"[1]", "mapping"), (b"a: [", "not YAML"), (b"a: \xff", "not UTF-8"), (None, "No such file")],
)
def test_a_bad_configuration_file(monkeypatch, tmp_path, content, says):
    file = tmp_path / "config.yaml"
    if content is not None:
        file.write_bytes(content)
    monkeypatch.setenv("VLLM_CONFIG_FILE", str(file))
    with pytest.raises(SettingsError, match=says):
        load_settings()


def test_secrets_are_not_shown(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_planted")
    monkeypatch.setenv("API_KEY", "key_planted, other_planted")
    settings = load_settings()
    assert settings.hf_token.get_secret_value() == "hf_planted"
    assert [key.get_secret_value() for key in settings.api_key] == ["key_planted", "other_planted"]
    assert "planted" not in repr(settings) + str(settings.model_dump())


def test_known_names_without_effect_are_named_once():
    environment = {"SWAP_SPACE": "4", "MAX_MODEL_LEN": "1", "UNRELATED": "x"}
    (line,) = warn_unused(environment)
    assert line.startswith("SWAP_SPACE ") and KNOWN_UNUSED["SWAP_SPACE"] in line


@pytest.mark.parametrize(
    ("name", "met", "unmet"),
    [
        ("TENSOR_PARALLEL_SIZE", "1", "2"),
        ("API_SERVER_COUNT", " 1 ", "01x"),
        ("SWAP_SPACE", "0", "1"),
        ("TOKENIZER_MODE", "auto", "slow"),
        ("ENABLE_LORA", "0", "1"),
        ("SKIP_TOKENIZER_INIT", "False", "true"),
        ("ENABLE_CHUNKED_PREFILL", "1", "0"),
        ("DISABLE_LOG_REQUESTS", "yes", "false"),
        ("VLLM_ENABLE_RESPONSES_API_STORE", "1", "0"),
        ("VLLM_KEEP_ALIVE_ON_ENGINE_DEATH", "0", "1"),
    ],
)
def test_what_happens_anyway_is_not_said_to_have_no_effect(monkeypatch, tmp_path, name, met, unmet):
    assert warn_unused({name: met}) == []
    assert len(warn_unused({name: unmet})) == 1
    file = tmp_path / "config.yaml"
    for value, count in ((met, 0), (unmet, 1)):
        file.write_text(f"{name.lower()}: {value}\n")
        assert len(warn_unused({"VLLM_CONFIG_FILE": str(file)})) == count


def test_values_that_are_met_anyway_are_of_variables_without_effect():
    assert {name for names in _MET_ANYWAY.values() for name in names.split()} <= set(KNOWN_UNUSED)


@pytest.mark.parametrize("blank", ["", " ", "\t \n"])
def test_what_is_empty_is_unset(monkeypatch, blank):
    """As a form sends what nobody filled in: for every setting under each name, and for every known variable."""
    keys = {"api_key", "admin_api_key"}  # of which blanks are a mistake that would leave a server open
    expected = Settings().model_dump(exclude=keys)
    for field in Settings.model_fields:
        if field not in keys:
            for name in variable_names(field):
                monkeypatch.setenv(name, blank)
    monkeypatch.setenv("VLLM_CONFIG_FILE", blank)
    assert load_settings().model_dump(exclude=keys) == expected
    flags = dict.fromkeys(field for field in Settings.model_fields if field not in keys)
    assert load_settings(dict.fromkeys(flags, blank)).model_dump() == Settings().model_dump()
    assert warn_unused(dict.fromkeys(KNOWN_UNUSED, blank)) == []


def test_an_empty_name_hides_no_other_one(monkeypatch, tmp_path):
    monkeypatch.setenv("MODEL_NAME", " ")
    monkeypatch.setenv("MODEL", "org/model")
    assert load_settings().model_name == "org/model"
    monkeypatch.setenv("MODEL", "")
    file = tmp_path / "settings.yaml"
    file.write_text("model: of-the-file\nmax-model-len:\nblock_size: ''\nquantization: ''\nseed: '  '\n")
    monkeypatch.setenv("VLLM_CONFIG_FILE", str(file))
    settings = load_settings()
    assert (settings.model_name, settings.max_model_len, settings.block_size) == ("of-the-file", None, 16)


def test_no_name_is_both_read_and_unread():
    read = {alias for field in Settings.model_fields.values() for alias in field.validation_alias.choices}
    assert not read & set(KNOWN_UNUSED)
    assert variable_names("model_name")[0] == "MODEL_NAME"
    assert all(field.description for field in Settings.model_fields.values())


def test_the_reference_page_is_up_to_date():
    from pathlib import Path

    from ember.cli.settings_table import settings_table

    page = Path(__file__).parent.parent / "docs" / "settings.md"
    assert settings_table() in page.read_text(), "run: ember settings, and put its table into docs/settings.md"


@pytest.mark.parametrize("value", [",", " ", ", ,"])
def test_a_key_that_is_none_does_not_leave_the_server_open(monkeypatch, value):
    monkeypatch.setenv("API_KEY", value)
    with pytest.raises(SettingsError, match="holds no key"):
        load_settings()
    with pytest.raises(SettingsError, match="holds no key"):
        load_settings({"api_key": value})


@pytest.mark.parametrize(
    ("variables", "tasks"),
    [
        ({}, ("auto", "auto")),
        ({"TASK": "embedding"}, ("pooling", "embed")),
        ({"TASK": "score", "CONVERT": "classify"}, ("pooling", "classify")),
        ({"RUNNER": "pooling", "CONVERT": "none"}, ("pooling", "none")),
        ({"TASK": "embed", "RUNNER": "generate"}, None),
    ],
)
def test_the_older_setting_of_tasks_means_the_newer_two(monkeypatch, variables, tasks):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if tasks is None:
        with pytest.raises(SettingsError, match="TASK=embed: it means RUNNER=pooling, but RUNNER is generate"):
            load_settings()
    else:
        assert load_settings().tasks == tasks
