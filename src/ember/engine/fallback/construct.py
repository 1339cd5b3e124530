"""Whether a model of transformers can be served, as far as its code tells without weights.

`python -m ember.engine.fallback.construct` reads the settings of a boot from standard input (`wire.Configure` in JSON)
and prints `{"error": ...}`: the boot's words, or null. `ember inspect` asks it, in a process of its own.
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

import msgspec
import torch

from ember.engine.errors import ModelError, described
from ember.engine.fallback.guard import no_exit
from ember.engine.fallback.load import classes_of, import_transformers, named
from ember.engine.fallback.model import ForeignModel
from ember.engine.fallback.paged import PagedAttention
from ember.engine.loading.load import config_reader
from ember.wire import Configure

_MOST_PARAMETERS = 2 * 10**9  # of a model that is run: its weights are zeros, which need no memory until written
_SMALL = 1 << 20  # bytes of a tensor that is filled with zeros, since its memory may have been used before


def check(configure: Configure) -> None:
    """Make the model without weights, and find its calls of attention with weights of zeros. `model` is a directory.
    Raises ModelError."""
    model_dir = Path(configure.model)
    config = config_reader(configure)(model_dir)
    import_transformers()
    with named(config):
        config_class, model_class, values = classes_of(
            model_dir, config, configure.hf_overrides, configure.trust_remote_code
        )
        try:
            with torch.device("meta"), no_exit():
                lm = model_class(config_class.from_dict(values)).eval()
        except Exception as error:  # code of any model
            raise ModelError(f"transformers could not make it: {described(error)}") from error
        if sum(each.numel() for each in lm.parameters()) > _MOST_PARAMETERS:
            return
        lm = lm.to_empty(device="cpu")
        with torch.no_grad():
            for each in (*lm.parameters(), *lm.buffers()):
                if each.nbytes <= _SMALL:
                    each.zero_()
        ForeignModel(lm, PagedAttention(), config, configure.max_model_len)


def main() -> None:
    configure = msgspec.json.decode(sys.stdin.buffer.read(), type=Configure)
    error = None
    with contextlib.redirect_stdout(sys.stderr):  # code of any model may print
        try:
            check(configure)
        except ModelError as found:
            error = str(found)
    print(json.dumps({"error": error}))


if __name__ == "__main__":
    main()
