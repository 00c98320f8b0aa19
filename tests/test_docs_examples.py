"""What the how-tos give to other tools is what those tools take."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.docs_blocks import titled

FILES = titled()
KUBERNETES = "1.33"
MANIFESTS = [path for path in FILES if path.startswith("k8s/")]
CONTAINERFILES = [path for path in FILES if path.endswith("Containerfile")]


def schema_faults(schema: str, text: str, folder: Path) -> str:
    """What check-jsonschema says of a file, by a schema that it carries; empty when it fits."""
    path = folder / "file.yaml"
    path.write_text(text)
    tool = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema]
    done = subprocess.run([*tool, path], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr if done.returncode else ""


@pytest.mark.parametrize(
    ("path", "schema", "needed"),
    [
        (".github/workflows/deployment.yaml", "vendor.github-workflows", "runs-on"),
        (".gitlab-ci.yml", "vendor.gitlab-ci", "stages"),
    ],
)
def test_a_pipeline_fits_its_schema(path: str, schema: str, needed: str, tmp_path: Path) -> None:
    """GitHub and GitLab would take it; without a key that is needed, the schema objects."""
    text = FILES[path]
    assert schema_faults(schema, text, tmp_path) == ""
    assert schema_faults(schema, text.replace(f"{needed}:", "unknown:"), tmp_path)


@pytest.mark.parametrize("path", MANIFESTS)
def test_a_manifest_fits_the_schema_of_kubernetes(path: str) -> None:
    """No unknown key, and no value of another kind."""
    documents = list(yaml.safe_load_all(FILES[path]))
    assert documents
    for document in documents:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate({**document, "unknown": 1}, KUBERNETES, strict=True)


def test_the_job_is_run_once_and_asks_for_whole_cores() -> None:
    """A second try would have its own chance of a wrong PASS, a throttled client sends late."""
    _, job = yaml.safe_load_all(FILES["k8s/gate.yaml"])
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert job["spec"]["backoffLimit"] == 0
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert container["resources"]["limits"]["cpu"].isdigit()


def loose_ends(config: Any, job: Any) -> Iterator[str]:
    """The names in the Job that nothing has, and the paths in its arguments on no mount."""
    pod = job["spec"]["template"]["spec"]
    if config["metadata"]["namespace"] != job["metadata"]["namespace"]:
        yield "namespace"
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    for volume in pod["volumes"]:
        if "configMap" in volume and volume["configMap"]["name"] != config["metadata"]["name"]:
            yield f"configMap {volume['configMap']['name']}"
    for container in pod["containers"]:
        mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
        used = {mount["name"] for mount in mounts.values()}
        yield from (f"volume {name}" for name in used ^ volumes.keys())
        paths = [PurePosixPath(text) for text in container["args"] if text.startswith("/")]
        for path in (*paths, PurePosixPath(container["workingDir"], "file")):
            mount = mounts.get(str(path.parent))
            volume = volumes.get(mount["name"], {}) if mount else {}
            files = config["data"] if "configMap" in volume else {path.name: ""}
            if not volume or path.name not in files:
                yield f"path {path}"


@pytest.mark.parametrize(
    ("before", "after", "loose"),
    [
        ("", "", set()),
        ("{name: specs, mountPath", "{name: spec, mountPath", {"volume spec", "volume specs"}),
        ("configMap: {name: gate-spec}", "configMap: {name: spec}", {"configMap spec"}),
        ("canary.yaml: |", "gate.yaml: |", {"path /specs/canary.yaml"}),
        ("/gate/gate.json", "/out/gate.json", {"path /out/gate.json"}),
        ("workingDir: /gate", "workingDir: /home", {"path /home/file"}),
        ("name: gate, namespace: llm", "name: gate, namespace: x", {"namespace"}),
    ],
)
def test_what_the_job_names_is_there(before: str, after: str, loose: set[str]) -> None:
    """Volumes, the ConfigMap, the spec in it, and places that can be written to; a slip in any of
    them is found.
    """
    text = FILES["k8s/gate.yaml"]
    assert before in text
    found = set(loose_ends(*yaml.safe_load_all(text.replace(before, after) if before else text)))
    assert loose <= found
    assert bool(loose) is bool(found)


@pytest.mark.parametrize("path", CONTAINERFILES)
def test_a_containerfile_keeps_to_the_rules(path: str) -> None:
    """A pinned base, pinned packages, no root, and an entry point without a shell."""
    lines = [line.partition(" ") for line in FILES[path].strip().splitlines()]
    said = [(instruction, rest) for instruction, _, rest in lines]
    instructions = dict(said)
    assert {name for name, _ in said} <= {"FROM", "RUN", "USER", "WORKDIR", "ENTRYPOINT"}
    assert said[0][0] == "FROM"
    assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+[\w.-]*", instructions["FROM"])
    assert all("==" in rest for _, rest in said if "pip install" in rest)
    assert instructions["USER"] not in {"root", "0"}
    assert "pytest" in json.loads(instructions["ENTRYPOINT"])
    assert said[-1][0] == "ENTRYPOINT"


def test_there_are_examples_of_each() -> None:
    """None of the above went by with nothing to look at."""
    assert MANIFESTS
    assert CONTAINERFILES
