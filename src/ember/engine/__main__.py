"""`python -m ember.engine FD`: the engine's process, started by the front with one end of a socketpair."""

import os
import sys

from ember.engine.lean import libraries

if __name__ == "__main__":
    libraries.start_loading()
    from ember.engine.core.process import main

    status = main(int(sys.argv[1]))
    sys.stderr.flush()
    os._exit(status)  # nothing needs tearing down, and torch takes its time over it
