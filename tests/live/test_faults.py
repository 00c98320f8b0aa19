"""What goes wrong on a real vLLM ends in the right row, and leaves nothing running.

These are some of the faults of the matrix; `make fault-matrix` runs them all.
"""

from __future__ import annotations

import pytest

from tests.faults.catalogue import FAULTS
from tests.faults.fault import Fault, outcome

NAMES = (
    "worker killed in traffic",
    "worker stopped in traffic",
    "pytest killed during start",
    "Ctrl-C in traffic",
)


@pytest.mark.parametrize("fault", [f for f in FAULTS if f.name in NAMES], ids=lambda f: f.name)
def test_a_fault(fault: Fault) -> None:
    """The rows and the exit code say what happened, soon enough, and nothing is left."""
    found = outcome(fault)
    assert list(found.problems) == [], found.output
