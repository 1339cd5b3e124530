"""The worker: takes jobs from the queue, or runs the one in `--test_input` or ./test_input.json.

The same as `ember worker`. The engine's process is started before anything else is imported.
"""

import sys

from ember.cli import main

if __name__ == "__main__":
    sys.exit(main(["worker", *sys.argv[1:]]))
