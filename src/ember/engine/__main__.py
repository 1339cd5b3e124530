"""`python -m ember.engine FD`: the engine process. The front starts it with one end of a socketpair."""

import os
import sys

from ember.engine.lean import libraries

if __name__ == "__main__":
    libraries.start_loading()
    from ember.engine.core.process import main

    status = main(int(sys.argv[1]))
    sys.stderr.flush()
    os._exit(status)  # skips torch's slow finalisation, since nothing needs it
