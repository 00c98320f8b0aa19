"""A fake libnvidia-ml.so.1 under the real pynvml, for machines without a GPU."""

import ctypes
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .profiles import A100, B200, H100, H100_MIG, H200, L40S, PROFILES, Profile, Value

__all__ = [
    "A100",
    "B200",
    "H100",
    "H100_MIG",
    "H200",
    "L40S",
    "PROFILES",
    "FakeNvml",
    "Profile",
    "Value",
    "build",
]

SONAME = "libnvidia-ml.so.1"
FLAGS = ("-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", f"-Wl,-soname,{SONAME}")


def build(directory: Path) -> Path:
    """Compile the fake into `directory`; needs `cc`."""
    library = directory / SONAME
    source = Path(__file__).with_name("nvml.c")
    subprocess.run(["cc", *FLAGS, "-o", str(library), str(source)], check=True)
    return library


@dataclass(frozen=True)
class FakeNvml:
    """A built library, and the file that says what machine it pretends to be."""

    library: Path
    state: Path

    def env(self) -> dict[str, str]:
        """The variables under which a new process finds this fake; lay them over `os.environ`."""
        path = os.environ.get("LD_LIBRARY_PATH")
        return {
            "LD_LIBRARY_PATH": os.pathsep.join(filter(None, [str(self.library.parent), path])),
            "FAKE_NVML": str(self.state),
        }

    def write(
        self, profile: Profile, overrides: Mapping[str, Value] | None = None, *, count: int = 8
    ) -> None:
        """Become `count` GPUs of this kind, apart from the overrides."""
        self._replace({**profile.keys(count), **(overrides or {})})

    def update(self, overrides: Mapping[str, Value]) -> None:
        """Change some keys of the machine as it stands, also while somebody watches it."""
        lines = self.state.read_text(encoding="utf-8").splitlines()
        self._replace({**dict(line.split("=", 1) for line in lines), **overrides})

    def load(self) -> ctypes.CDLL:
        """Load the fake here: pynvml then gets it too, by its SONAME. FAKE_NVML must be set."""
        return ctypes.CDLL(str(self.library))

    def _replace(self, keys: Mapping[str, Value]) -> None:
        new = self.state.with_name(f"{self.state.name}.new")
        new.write_text("".join(f"{key}={value}\n" for key, value in keys.items()), encoding="utf-8")
        new.replace(self.state)
