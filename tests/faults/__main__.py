"""Run the fault matrix and print what came of each fault: `python -m tests.faults [NAME …]`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from tabulate import tabulate

from tests.faults.catalogue import FAULTS
from tests.faults.fault import Fault, Outcome, outcome

_HEAD = ("fault", "on", "the rows say", "exit", "left", "verdict s", "clean s", "limit s")
_LONGEST = 120
_LAST_LINES = 60


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 1 when something is not as it must be."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="a part of its name, or what it is on"
    )
    parser.add_argument("--list", action="store_true", help="only name them")
    parser.add_argument("--verbose", action="store_true", help="what the gate printed, too")
    options = parser.parse_args(arguments)
    faults = [f for f in FAULTS if _is_meant(f, options.names)]
    if options.list:
        sys.stdout.write("".join(f"{fault.name}\n" for fault in faults))
        return 0
    began, found = time.monotonic(), []
    for number, fault in enumerate(faults, 1):
        _say(f"{number} of {len(faults)}: {fault.name}, on {fault.on}")
        found.append(outcome(fault))
        _say("".join(f"  NOT as it must be: {problem}\n" for problem in found[-1].problems))
        if options.verbose or found[-1].problems:
            _say(found[-1].output)
            _say("\n".join(["the server's log ends:", *found[-1].log.splitlines()[-_LAST_LINES:]]))
    table = tabulate(map(_row, found), _HEAD, tablefmt="github", disable_numparse=True)
    wrong = sum(bool(each.problems) for each in found)
    sys.stdout.write(
        f"\n{table}\n\n{len(found) - wrong} of {len(found)} faults end as they must, "
        f"in {(time.monotonic() - began) / 60:.0f} min\n"
    )
    return 1 if wrong else 0


def _is_meant(fault: Fault, names: Sequence[str]) -> bool:
    return not names or any(name in fault.name or name == fault.on for name in names)


def _row(found: Outcome) -> Sequence[str]:
    fault, said = found.fault, "".join(filter(str.isprintable, found.said)).replace("|", "/")
    said = said if len(said) <= _LONGEST else said[: _LONGEST - 1] + "…"
    times = (f"{seconds:.1f}" for seconds in (found.seconds, found.clean))
    mark = " **wrong**" if found.problems else ""
    left = str(len(found.left))
    return (fault.name + mark, fault.on, said, str(found.exit), left, *times, f"{found.limit:g}")


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n" if text else "")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
