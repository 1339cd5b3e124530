"""The boot timeline: what is recorded, and how it is drawn."""

import asyncio
import json
import threading
import time
import xml.etree.ElementTree as ET
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import pytest

from ember.boot import Timeline, now, process_start_time
from ember.boot_report import as_svg, as_text
from ember.cli import main


@pytest.fixture
def report():
    timeline = Timeline("front", origin=now() - 1.0)
    with timeline.phase("tokenizer", tokens=5) as detail:
        time.sleep(0.02)
        detail["files"] = 2
    timeline.extend([{"name": "load", "process": "engine", "start": 0.25, "end": 0.75, "detail": {"bytes": 10}}])
    timeline.mark("ready")
    timeline.mark("ready")
    return timeline.report()


def test_phases_are_ordered_and_measured_from_the_origin(report):
    assert [phase["name"] for phase in report["phases"]] == ["load", "tokenizer"]
    tokenizer = report["phases"][1]
    assert tokenizer["detail"] == {"tokens": 5, "files": 2}
    assert 1.0 <= tokenizer["start"] < tokenizer["end"] <= report["marks"]["ready"]
    assert tokenizer["end"] - tokenizer["start"] >= 0.02
    json.dumps(report)


def test_a_phase_is_recorded_when_its_block_fails():
    timeline = Timeline("front")
    with pytest.raises(ValueError, match="no"), timeline.phase("broken"):
        raise ValueError("no")
    assert timeline.report()["phases"][0]["name"] == "broken"


def test_the_origin_is_the_start_of_the_process():
    assert process_start_time() <= now()
    assert now() - process_start_time() < 24 * 3600
    assert Timeline("front").elapsed() > 0


def test_text_and_picture_show_every_phase_and_mark(report):
    text = as_text(report)
    for word in ("tokenizer", "load", "front", "engine", "bytes 10", "0.250s", "0.500s", "ready at"):
        assert word in text
    picture = as_svg(report)
    rectangles = ET.fromstring(picture).findall("{http://www.w3.org/2000/svg}rect")
    assert len(rectangles) == 1 + len(report["phases"])
    widths = [float(rectangle.get("width")) for rectangle in rectangles[1:]]
    assert widths[0] > widths[1]


def test_the_command(report, tmp_path, capsys):
    file = tmp_path / "boot.json"
    file.write_text(json.dumps(report))
    assert main(["boot-report", str(file), "--svg", str(tmp_path / "boot.svg")]) == 0
    assert "tokenizer" in capsys.readouterr().out
    assert (tmp_path / "boot.svg").read_text().startswith("<svg")
    assert main(["boot-report", str(tmp_path / "none.json")]) == 1
    assert "No such file" in capsys.readouterr().err
    file.write_text("[]")
    assert main(["boot-report", str(file)]) == 1
    assert "not a boot report" in capsys.readouterr().err


def test_a_report_that_cannot_be_written_is_told_once(tmp_path, caplog):
    async def scenario():
        from ember.front.start import Worker
        from ember.settings import load_settings

        engine = SimpleNamespace(on_first_token=None)
        worker = Worker(load_settings({"boot_report": str(tmp_path / "none" / "x.json")}), engine, Timeline("front"))
        worker.write_boot_report()
        worker.write_boot_report()

    asyncio.run(scenario())
    assert [record.getMessage().partition("=")[0] for record in caplog.records] == ["EMBER_BOOT_REPORT"]


def test_the_report_of_a_running_server(report, capsys, monkeypatch):
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, self.headers.get("Authorization")))
            is_report = self.path == "/boot"
            self.send_response(200 if is_report else 401)
            self.end_headers()
            self.wfile.write(json.dumps(report).encode() if is_report else b"{}")

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    try:
        monkeypatch.delenv("API_KEY", raising=False)
        assert main(["boot-report", url]) == 0
        assert "tokenizer" in capsys.readouterr().out
        monkeypatch.setenv("API_KEY", "planted,other")
        assert main(["boot-report", url + "/boot"]) == 0
        capsys.readouterr()
        assert main(["boot-report", url + "/else"]) == 1
        error = capsys.readouterr().err
        assert f"{url}/else/boot: HTTP 401" in error and "API_KEY" in error and "planted" not in error
    finally:
        server.shutdown()
        server.server_close()
    assert asked == [("/boot", None), ("/boot", "Bearer planted"), ("/else/boot", "Bearer planted")]
    assert main(["boot-report", url]) == 1
    assert f"{url}/boot: " in capsys.readouterr().err
