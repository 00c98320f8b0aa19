"""Run a command on GPUs that are not there; by default a spec's checks of the plan and the host.

Keys and their meaning are in tests/fake_nvml/profiles.py and nvml.c, whole machines with something
wrong in tests/machines.py. The file that describes the machine may be replaced while it runs.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from tests.machines import MACHINES, Machine

from . import PROFILES, FakeNvml, build

REPOSITORY = Path(__file__).parents[2]


def main() -> int:
    """Reads the arguments, becomes the machine, and runs the command."""
    arguments = _parser().parse_args()
    machine = MACHINES[arguments.machine] if arguments.machine else Machine()
    profile = PROFILES[arguments.profile] if arguments.profile else machine.profile
    count = machine.count if arguments.gpus is None else arguments.gpus
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    fake = FakeNvml(build(folder), folder / "machine")
    fake.write(profile, {**machine.keys, **dict(arguments.fault)}, count=count)
    sys.stderr.write(f"fake NVML: {count} × {profile.name}, as {fake.state} says\n")
    environment = {**os.environ, **fake.env()}
    if machine.visible is not None:
        environment["CUDA_VISIBLE_DEVICES"] = machine.visible
    hardware = ["-m", "pytest", f"--deploy-spec={arguments.spec}", "-m", "plan or host"]
    command = arguments.command or [sys.executable, *hardware]
    return subprocess.run(command, env=environment, check=False).returncode


def _key_and_value(text: str) -> tuple[str, str]:
    key, _, value = text.partition("=")
    return key, value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fake_nvml",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="machines:\n" + "\n".join(f"  {name}" for name in MACHINES),
    )
    parser.add_argument("--profile", choices=PROFILES, help="the kind of GPU")
    parser.add_argument("--gpus", type=int, help="how many there are (8)")
    parser.add_argument(
        "--fault",
        nargs="+",
        type=_key_and_value,
        default=[],
        metavar="KEY=VALUE",
        help="what is different; a key without a value is not supported",
    )
    parser.add_argument("--machine", choices=MACHINES, metavar="NAME", help="one of those below")
    parser.add_argument(
        "--spec", default=str(REPOSITORY / "specs" / "llama3-70b-8xh100.yaml"), help="what to check"
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=REPOSITORY / "build" / "fake-nvml",
        help="where the library and the description are put",
    )
    parser.add_argument("command", nargs="*", help="what to run instead of pytest, after --")
    return parser


if __name__ == "__main__":
    sys.exit(main())
