"""`llmdeploy completion`, in real shells."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from pytest_llmdeploy.cli import main

# What readline does with the function that a completion names, for the last word of the line.
ASK = """\
source {script}
COMP_WORDS=({words}); COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 )); COMP_LINE={line}
COMP_POINT=${{#COMP_LINE}}
$(complete -p llmdeploy | sed 's/.*-F \\([^ ]*\\) .*/\\1/') llmdeploy
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture
def script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """What `llmdeploy completion bash` prints, in a file."""
    pytest.importorskip("shtab")
    assert main(["completion", "bash"]) == 0
    path = tmp_path / "script"
    path.write_text(capsys.readouterr().out)
    return path


@pytest.mark.parametrize(
    ("words", "answers"),
    [
        (["in"], {"init"}),
        (["init", "--from-"], {"--from-command", "--from-url", "--from-manifest"}),
        (["init", "--device", "H"], {"H100-SXM-80GB", "H200-SXM-141GB"}),
        (["init", "--model", "deepseek-ai/DeepSeek-V3"], {"deepseek-ai/DeepSeek-V3"}),
        (["plan", "spe"], {"spec.yaml"}),
        (["plan", "spec.yaml", "--graph", "d"], {"dot"}),
        (["schema", "r"], {"report"}),
        (["completion", "z"], {"zsh"}),
    ],
)
def test_in_bash(script: Path, words: list[str], answers: set[str]) -> None:
    """The word that is begun gets the ends that it may have: commands, options, files, GPUs."""
    (script.parent / "spec.yaml").touch()
    line = ["llmdeploy", *words]
    text = ASK.format(script=script, words=shlex.join(line), line=shlex.quote(" ".join(line)))
    done = subprocess.run(
        ["bash", "--norc", "-c", text],
        cwd=script.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    assert answers <= set(done.stdout.split())


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
def test_in_zsh(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is a script of zsh."""
    pytest.importorskip("shtab")
    assert main(["completion", "zsh"]) == 0
    path = tmp_path / "_llmdeploy"
    path.write_text(capsys.readouterr().out)
    assert path.read_text().startswith("#compdef llmdeploy\n")
    subprocess.run(["zsh", "-n", str(path)], check=True)


def test_without_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says what to install."""
    monkeypatch.setitem(__import__("sys").modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    expected = "llmdeploy completion: needs shtab: pip install 'pytest-llmdeploy[completion]'\n"
    assert capsys.readouterr() == ("", expected)
