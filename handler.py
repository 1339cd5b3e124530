"""The worker: takes jobs from the queue, or runs the one in `--test_input` or ./test_input.json.

The same as `ember worker`. The engine's process is started before anything else is imported.
"""

import sys

try:
    from ember.cli import main
except ModuleNotFoundError as error:
    sys.exit(f"{error}: use `make run`, or the environment it makes: .venv/bin/python handler.py")

if __name__ == "__main__":
    sys.exit(main(["worker", *sys.argv[1:]]))
