"""The `ember` command. Every setting is a flag under its own name.

`ember serve [MODEL]`   the HTTP server
`ember worker`          the queue worker; the same as `python handler.py`
`ember platform [MODEL]` the serverless platform on this machine, with a worker of its own if a model is named
`ember chat [MODEL]`    a conversation in the terminal, with a model here or of a server
`ember bench [MODEL]`   a load test of a model here or of a server, or the time that servers take to start
`ember batch IN OUT`    a file of requests, with a model in this process or against a server
`ember inspect MODEL`   what a boot of the model would choose, need and ignore, here and on common GPUs
`ember models`          the models that are served, as Markdown
`ember quantize SOURCE TARGET --format FORMAT`   a checkpoint with rounded weights
`ember settings`        the table of all settings, as Markdown, or with --hub as the RunPod Hub's listing
`ember boot-report`     a boot timeline (from a file of EMBER_BOOT_REPORT, or a server's URL), drawn as text or SVG

`serve` and `worker` start the engine process before they import anything else, so that both processes boot in parallel.
"""

from __future__ import annotations

import gc
import os
import sys

from ember.front.link.spawn import prepare
from ember.front.worker.contract import on_queue
from ember.front.worker.signals import leave_on_signals

_NO_ENGINE = frozenset({"-h", "--help"})


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit status. `argv`: the arguments after the program's name."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] in (["serve"], ["worker"]) and _NO_ENGINE.isdisjoint(arguments):
        prepare()
        gc.disable()  # imports allocate many objects and free few; front/start.py enables it again
        leave_on_signals(0 if on_queue() else None)  # the engine ends with the front
    if arguments[:1] == ["batch"]:
        # until the requests run
        leave_on_signals(130, lambda: print("interrupted: run the same command again", file=sys.stderr))
    # pydantic reads the metadata of every installed package, 10 ms, in search of plugins for itself.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "true")
    from ember.cli import workers
    from ember.cli.flag_settings import fail
    from ember.flags import make_parser, with_dashes
    from ember.settings import SettingsError

    flags = make_parser().parse_args(with_dashes(arguments))
    command = workers.COMMANDS.get(flags.command)
    if command is None:
        from ember.cli.commands import COMMANDS

        command = COMMANDS[flags.command]
    try:
        return command(flags)
    except SettingsError as error:
        return fail(str(error))
    except BrokenPipeError:  # who reads the output has seen enough, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
