"""The command line: flags become settings, mistakes become one line and an exit code."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from ember import cli
from ember.flags import flag_names
from ember.platform.server import worker_environment
from ember.settings import Settings, warn_unused
from tests.support.processes import Process


class Launched(Exception):
    """Ends a command where the engine would be configured."""


@pytest.fixture(autouse=True)
def no_engine(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """No command starts an engine; `settings` in the result is what it would have been launched with."""
    seen: dict[str, Any] = {"prepared": 0}

    def launch(settings: Settings) -> None:
        seen["settings"] = settings
        raise Launched

    def prepare() -> None:
        seen["prepared"] += 1

    for name in list(os.environ):
        if name.startswith(("RUNPOD_", "MODEL_")):
            monkeypatch.delenv(name)
    monkeypatch.setattr("ember.front.start.launch", launch)
    for module in ("ember.cli", "ember.cli.workers"):
        monkeypatch.setattr(f"{module}.prepare", prepare)
        monkeypatch.setattr(f"{module}.leave_on_signals", lambda status: None)
    monkeypatch.setattr("ember.front.worker.health.report_unhealthy", lambda reason: seen.update(unhealthy=reason))
    return seen


def settings_of(seen: dict[str, Any], *arguments: str) -> Settings:
    with pytest.raises(Launched):
        cli.main(list(arguments))
    assert seen["prepared"] == 1
    settings: Settings = seen["settings"]
    return settings


def test_flags_become_settings(no_engine: dict[str, Any]) -> None:
    settings = settings_of(
        no_engine, "serve", "my/model", "--max-model-len", "4K", "--no-enable-prefix-caching", "--port=0", "--dtype",
        "bf16", "--served-model-name", "a", "--served-model-name", "b,c", "--api-key", "k1",
        "--api-key", "k2", "--enable_request_id_headers",
        "--override-generation-config", '{"temperature": 0.5}',
    )  # fmt: skip
    assert settings.model_name == "my/model"
    assert settings.max_model_len == 4096
    assert not settings.enable_prefix_caching
    assert settings.enable_request_id_headers
    assert settings.port == 0
    assert settings.dtype == "bfloat16"
    assert settings.served_names == ["a", "b", "c"]
    assert [key.get_secret_value() for key in settings.api_key] == ["k1", "k2"]
    assert settings.override_generation_config == {"temperature": 0.5}


@pytest.mark.parametrize("flag", ["--api-key", "--served-model-name"])
def test_a_list_does_not_swallow_the_model(no_engine: dict[str, Any], flag: str) -> None:
    assert settings_of(no_engine, "serve", flag, "a,b", "my/model").model_name == "my/model"


def test_flags_are_stronger_than_the_environment(no_engine: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_NAME", "of/environment")
    monkeypatch.setenv("MAX_NUM_SEQS", "5")
    settings = settings_of(no_engine, "serve", "--model", "of/flags")
    assert (settings.model_name, settings.max_num_seqs) == ("of/flags", 5)


def test_every_setting_has_a_flag_of_its_own() -> None:
    names = [name for field in Settings.model_fields for name in flag_names(field)]
    assert len(names) == len(set(names))
    for field in Settings.model_fields:
        assert "--" + field.replace("_", "-") in flag_names(field)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["serve", "--bogus"], "unrecognized arguments: --bogus"),
        (["serve", "--max-model"], "unrecognized arguments: --max-model"),
        (["serve", "--port"], "expected one argument"),
        (["worker", "--rp_bogus"], "unrecognized arguments"),
        (["worker", "--rp_log_level", "LOUD"], "invalid choice"),
        (["dance"], "invalid choice"),
        ([], "required"),
    ],
)
def test_bad_flags(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def test_a_bad_setting_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", "--gpu-memory-utilization", "7"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("ember: error: GPU_MEMORY_UTILIZATION=7")
    assert err.count("\n") == 1


def test_secrets_are_not_repeated(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert cli.main(["serve", "--api-key", "sk_secret", "--port", "x"]) == 1
    assert "secret" not in capsys.readouterr().err


def test_a_queue_without_a_model(
    no_engine: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNPOD_WEBHOOK_GET_JOB", "http://127.0.0.1:9/job-take/$ID?gpu=x")
    assert cli.main(["worker"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("ember: error: MODEL_NAME is not set")
    assert err.count("\n") == 1
    assert "MODEL_NAME" in no_engine["unhealthy"]


def test_a_server_without_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve"]) == 1
    assert capsys.readouterr().err.startswith("ember: error: MODEL_NAME is not set")


def test_a_local_job_has_a_model(no_engine: dict[str, Any]) -> None:
    settings = settings_of(
        no_engine, "worker", "--test_input", '{"prompt": "a"}', "--rp_log_level", "debug", "--rp_debugger"
    )
    assert settings.model_name == "demo"


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The variables that a platform gives its worker; they are as before when the test ends."""
    names = worker_environment("http://x", "w")
    for name in names:
        monkeypatch.setenv(name, "")
    return names


def test_the_sdk_flags(no_engine: dict[str, Any], played: dict[str, str]) -> None:
    settings = settings_of(no_engine, "worker", "--rp_serve_api", "--rp_api_port", "0", "--rp_api_host", "127.0.0.1")
    assert settings.model_name == "demo"
    assert os.environ["RUNPOD_WEBHOOK_GET_JOB"].startswith("http://localhost:")


def test_a_worker_of_a_platform_elsewhere(no_engine: dict[str, Any], played: dict[str, str]) -> None:
    settings = settings_of(no_engine, "worker", "--model", "my/model", "--platform", "http://there:1")
    assert settings.model_name == "my/model"
    assert os.environ["RUNPOD_WEBHOOK_GET_JOB"].startswith("http://there:1/v2/LOCAL/job-take/$ID?")


def test_a_platform_with_a_worker_of_its_own(no_engine: dict[str, Any], played: dict[str, str]) -> None:
    settings = settings_of(no_engine, "platform", "my/model", "--port", "0", "--api-key", "a-key")
    assert settings.model_name == "my/model"
    assert os.environ["RUNPOD_AI_API_KEY"] == "a-key"


def test_the_environment_of_a_platforms_worker(
    no_engine: dict[str, Any], played: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["platform", "--env", "http://there:1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split("=")[0].removeprefix("export ") for line in lines} == set(played)
    assert no_engine["prepared"] == 0


@pytest.mark.parametrize("store", ["sqlite:/no/such/directory/x.db", "redis:x"])
def test_a_store_that_cannot_be(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["platform", "--port", "0", "--store", store]) == 1
    err = capsys.readouterr().err
    assert err.startswith("ember: error: ") and err.count("\n") == 1


def test_behind_a_load_balancer_a_worker_serves(no_engine: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "8080")
    monkeypatch.setenv("RUNPOD_ENDPOINT_ID", "x")
    settings = settings_of(no_engine, "worker", "--model", "my/model")
    assert (settings.model_name, settings.port) == ("my/model", 8080)
    assert cli.main(["worker"]) == 1  # and it is not the demo model that it would serve there


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_bad_test_input(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["worker", "--test_input", text]) == 1
    assert capsys.readouterr().err.startswith("ember: error: --test_input")


def test_a_local_job_with_a_bad_setting_has_its_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["worker", "--test_input", '{"prompt": "a"}', "--port", "x"]) == 1
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert (document["id"], document["status"]) == ("local_test", "FAILED")
    assert document["error"].startswith("PORT=x")
    assert err.count("\n") == 1 and "PORT=x" in err


def test_nothing_is_imported_before_the_engine_is_started() -> None:
    code = "import sys; from ember import cli; print(*sys.modules)"
    with Process("-c", code) as process:
        assert not {"argparse", "dataclasses", "pydantic", "asyncio", "logging", "json"} & set(process.output().split())


def test_help_starts_no_engine(no_engine: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["serve", "--help"])
    assert caught.value.code == 0
    assert "--max-model-len" in capsys.readouterr().out
    assert no_engine["prepared"] == 0


def test_table_of_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["settings"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(Settings.model_fields)
    assert {line.replace("\\|", "").count("|") for line in lines} == {6}
    assert any(line.startswith("| `MAX_MODEL_LEN` |") for line in lines)


def test_batch_sizes_of_other_workers() -> None:
    read = {"DEFAULT_BATCH_SIZE": "5", "MIN_BATCH_SIZE": "1", "BATCH_SIZE_GROWTH_FACTOR": "3"}
    assert warn_unused(read) == []
    (line,) = warn_unused({"DEFAULT_BATCH_SIZE_GROWTH_FACTOR": "3"})  # set to 3 by every template, on no one's wish
    assert "set BATCH_SIZE_GROWTH_FACTOR" in line


def test_an_unknown_entry_of_the_file_is_named_once(
    no_engine: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where no model is named, for which the settings are read again."""
    file = tmp_path / "config.yaml"
    file.write_text("max-modle-len: 5\nswap-space: 4\nport: 1234\nenable-lora: false\n")
    monkeypatch.setenv("VLLM_CONFIG_FILE", str(file))
    settings = settings_of(no_engine, "worker", "--test_input", '{"prompt": "a"}')
    assert (settings.model_name, settings.port) == ("demo", 1234)
    lines = [line for line in capsys.readouterr().err.splitlines() if "no effect" in line]
    assert [
        f"{key} in {file} has no effect: " in line
        for key, line in zip(("max-modle-len", "swap-space"), lines, strict=True)
    ] == [True, True]


def test_warnings_name_the_variable() -> None:
    (line,) = warn_unused({"TENSOR_PARALLEL_SIZE": "2", "MODEL_NAME": "m"})
    assert line.startswith("TENSOR_PARALLEL_SIZE ")


def test_two_models_are_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", "demo", "--model-name", "other"]) == 2
    assert "two models are named" in capsys.readouterr().err
