"""The recipe of Ember's demo model: synthetic corpus, tokenizer, trainer and evaluation.

`python -m builder.demo_model` makes every file in `src/ember/demo/` from nothing.
"""

import os

# Threads that wait without spinning: on a machine that does other work too, spinning costs more than it gains.
# It has to be said before torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
