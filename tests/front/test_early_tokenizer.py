"""The tokenizer that the front loads before the engine says where the model is, where that is elsewhere."""

import asyncio
import gc
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

import ember.demo
from ember.boot import Timeline
from ember.front.link.engine import EngineError
from ember.front.start import Worker
from ember.front.text.tokenizer import Tokenizer
from ember.settings import load_settings
from tests.api.fakes import ready

DEMO = Path(ember.demo.__file__).parent
END = EngineError("the model cannot be served")


class Engine:
    """Says that the model is in a directory, or fails at once, and fails then."""

    on_first_token = None

    def __init__(self, directory):
        self.directory = directory
        self.error = str(END)

    async def start(self):
        self.located = asyncio.get_running_loop().create_future()
        if self.directory is None:
            self.located.set_exception(END)
        else:
            self.located.set_result(SimpleNamespace(model_dir=str(self.directory), tokenizer_dir=str(self.directory)))

    async def wait_ready(self):
        raise END

    async def close(self):
        pass

    def add_end_tokens(self, token_ids):
        pass


@pytest.mark.parametrize("is_broken", [True, False])
@pytest.mark.parametrize("elsewhere", [DEMO, None])
def test_an_abandoned_tokenizer_leaves_no_trace(tmp_path, is_broken, elsewhere):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / name, tmp_path)
    if is_broken:
        (tmp_path / "tokenizer.json").write_text("{")
    unseen = []

    async def scenario():
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: unseen.append(context["message"]))
        worker = Worker(load_settings({"model_name": str(tmp_path)}), Engine(elsewhere), Timeline("front"))
        await worker.start()
        with pytest.raises(EngineError, match=str(END)):
            await worker.ready()
        await worker.close()
        await asyncio.sleep(0.3)  # until the abandoned one is loaded
        return Counter(phase.name for phase in worker.timeline.phases)

    phases = asyncio.run(scenario())
    gc.collect()
    assert unseen == []
    assert phases == ({} if elsewhere is None else {"tokenizer": 1, "template": 1})


def test_a_worker_leaves_batches_to_the_server(tmp_path):
    """A session of Python or a queue worker with BATCH_DIR in its environment does not take batches over."""

    class Booting(Engine):
        async def wait_ready(self):
            return ready(Tokenizer.load(str(DEMO)))

    async def scenario():
        settings = load_settings({"model_name": str(DEMO), "batch_dir": str(tmp_path)})
        worker = Worker(settings, Booting(DEMO), Timeline("front"), owns_process=False)
        await worker.start()
        await worker.ready()
        await worker.close()

    asyncio.run(scenario())
    assert not list(tmp_path.iterdir())
