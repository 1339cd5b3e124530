"""`python -m ember.engine FD`: the engine's process, started by the front with one end of a socketpair."""

import sys

from ember.engine.core.process import main

if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
