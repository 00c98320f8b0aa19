"""The `llmdeploy` command as a whole: what it prints, and its exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_llmdeploy.cli import main


@pytest.mark.parametrize(
    ("of", "title"),
    [([], "pytest-llmdeploy spec, version 1"), (["report"], "pytest-llmdeploy report")],
)
def test_schema(of: list[str], title: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The schemas that are shipped, as valid JSON."""
    assert main(["schema", *of]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["title"].startswith(title)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: command"),
        (["fly"], "invalid choice: 'fly'"),
        (["init"], "--from-command --from-url --from-manifest --model is required"),
        (["init", "--model", "m", "--from-url", "u"], "not allowed with argument --model"),
        (
            ["init", "--from-command", "x", "--device", "cpu", "--nodes", "0"],
            "found '0': write a whole",
        ),
        (
            ["init", "--from-command", "x", "--device", "cpu", "--nodes", "x"],
            "found 'x': write a whole",
        ),
        (["plan", "a.yaml", "--json", "--repair"], "not allowed with argument --json"),
        (["plan", "a.yaml", "--graph", "png"], "invalid choice: 'png'"),
    ],
)
def test_usage(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A command line that is not one exits with 2 and says why."""
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_help_is_quick() -> None:
    """No room is entered before a command is known."""
    code = (
        "import sys; from pytest_llmdeploy.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print(sorted({'pydantic', 'yaml', 'pytest'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")
    assert "plan" in done.stdout
    assert "init" in done.stdout


def test_a_reader_that_has_seen_enough() -> None:
    """A page that is piped into something that ends ends without a complaint."""
    program = Path(sys.executable).with_name("llmdeploy")
    # Gone long before there is anything to read.
    command = f"{program} schema | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("", "")
