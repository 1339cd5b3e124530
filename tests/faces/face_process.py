"""A queue worker process with a fake engine, for the tests of the real SDK's loop.

python queue_worker.py '{"boot": 0.1, "boot_error": null, "settings": {}}'
"""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

from ember.front.api import routes
from ember.front.link.admission import Admission
from ember.front.link.engine import EngineError
from ember.settings import load_settings
from tests.faces.fakes import FAKE_ROUTER, FakeWorker


def main() -> int:
    options: dict[str, Any] = json.loads(sys.argv[1])
    logging.basicConfig(level="INFO", stream=sys.stderr)
    routes.ROUTER = FAKE_ROUTER  # the faces' one door to the api; they are imported below
    failure = EngineError(options["boot_error"]) if options.get("boot_error") else None
    settings = load_settings({"model_name": "m", **options.get("settings", {})})
    admission = Admission(settings.max_num_queued_reqs, settings.max_num_queued_tokens)
    worker: Any = FakeWorker(boot=options.get("boot", 0.0), boot_error=failure, admission=admission)
    if options.get("face") == "http":
        from ember.front.http import server

        server._CLOSE_SECONDS = options.get("close", server._CLOSE_SECONDS)
        return server.serve(settings, worker)
    if options.get("face") == "local":
        from ember.front.worker import local

        return local.run(settings, worker, local.read_job(json.dumps(options["job"])))
    if settings.queue_client == "direct":
        from ember.front.worker import direct

        return direct.run(settings, worker)
    from ember.front.worker import sdk

    return sdk.run(settings, worker)


if __name__ == "__main__":
    sys.exit(main())
