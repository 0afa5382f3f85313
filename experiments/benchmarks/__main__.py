"""All benchmarks, one after the other.

    python -m experiments.benchmarks [--only train_step ...] [--workload unet64 ...] [--record]

With --record every figure is kept as soon as it is there, and what has a record is not measured
again: started again, the same command goes on where it was stopped.
"""

from __future__ import annotations

import sys

from experiments.benchmarks import command
from experiments.benchmarks.page import BENCHMARKS

if __name__ == "__main__":
    sys.exit(command.run(BENCHMARKS, doc=__doc__))
