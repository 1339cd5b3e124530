"""Put on PYTHONPATH by `benchmarks/boot.py`: the worker's boot with its steps one after the other, for comparison.

Front: everything is imported before the engine is started, and the tokenizer is loaded when the engine is ready.
Engine: the model is found and its weights are on their way before torch is imported.
"""

import sys
import threading

_arguments = " ".join(sys.orig_argv)

if "ember.engine" in _arguments:
    _start = threading.Thread.start

    def _start_and_wait(self: threading.Thread) -> None:
        _start(self)
        if self.name == "locate":
            self.join()

    threading.Thread.start = _start_and_wait  # type: ignore[method-assign]

elif "handler.py" in _arguments:
    import ember.cli
    import ember.front.api.router
    import ember.front.text.template
    import ember.front.text.tokenizer
    import ember.front.worker.local
    import ember.settings  # noqa: F401
    from ember.front.start import Worker

    _boot = Worker._boot

    async def _boot_after_engine(self):  # type: ignore[no-untyped-def]
        await self.engine.wait_ready()
        return await _boot(self)

    Worker._boot = _boot_after_engine  # type: ignore[method-assign]
