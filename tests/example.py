"""The example package, installed as its users would have it."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

from tests.specs import REPOSITORY

EXAMPLE = REPOSITORY / "examples" / "llmdeploy-team-checks"


def installed(folder: Path) -> str:
    """A PYTHONPATH on which its entry points are found, as from a package index but for the
    download; `folder` holds what an installer writes.
    """
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    dist = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    dist.mkdir(parents=True)
    (dist / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\n")
    points = [
        f"[{group}]\n" + "".join(f"{name} = {place}\n" for name, place in named.items())
        for group, named in project["entry-points"].items()
    ]
    (dist / "entry_points.txt").write_text("\n".join(points))
    return os.pathsep.join(map(str, (REPOSITORY, EXAMPLE / "src", folder)))
