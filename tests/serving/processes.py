"""Python scripts as servers, and what is left of them."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil

from pytest_llmdeploy.serving import Command

REPOSITORY = Path(__file__).parents[2]

# Prints its pid and those of a child and of a grandchild that is in a session of its own; the two
# ignore SIGTERM. Where `stubborn` is set, the server itself only says that it got it; with
# `serve`, another child is the stand-in.
FAMILY = """
import os, signal, subprocess, sys, time
stubborn = "signal.signal(signal.SIGTERM, signal.SIG_IGN); "
grandchild = stubborn + "import time; print(os.getpid(), flush=True); time.sleep(120)"
child = stubborn + (
    "import subprocess, sys, time; print(os.getpid(), flush=True); "
    f"subprocess.Popen([sys.executable, '-c', {'import os, signal; ' + grandchild!r}],"
    " start_new_session=True); time.sleep(120)"
)
if "stubborn" in sys.argv:
    signal.signal(signal.SIGTERM, lambda *_: print("SIGTERM", flush=True))
print(os.getpid(), flush=True)
subprocess.Popen([sys.executable, "-c", "import os, signal; " + child])
if "serve" in sys.argv:
    given = sys.argv[sys.argv.index("serve") + 1 :]
    subprocess.Popen([sys.executable, "-m", "tests.serving.fake_vllm", *given])
time.sleep(120)
"""


def python(script: str, *arguments: str, **environment: str) -> Command:
    """A command that runs `script`."""
    return Command((sys.executable, "-c", script, *arguments), environment)


def fake_vllm(port: int, settings: str = "{}", **environment: str) -> Command:
    """The stand-in, started as a vLLM is."""
    program = (sys.executable, "-m", "tests.serving.fake_vllm")
    found: Mapping[str, str] = {"PYTHONPATH": str(REPOSITORY), **environment}
    return Command((*program, f"--port={port}", f"--settings={settings}"), found)


def eventually(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Polls until the condition holds; fails at the deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def freeze(pid: int) -> None:
    """Stops a process, and waits until not one of its threads runs."""
    os.kill(pid, signal.SIGSTOP)
    threads = Path(f"/proc/{pid}/task")
    eventually(
        lambda: all(
            (thread / "stat").read_text().rpartition(")")[2].split()[0] == "T"
            for thread in threads.iterdir()
        )
    )


def alive_with(text: str) -> list[psutil.Process]:
    """The processes, other than this one, whose command line contains `text`."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if text in line and process.pid != os.getpid():
            found.append(process)
    return found


def family(log: str) -> list[int]:
    """The three pids that `FAMILY` prints; fewer while it is starting."""
    return [int(line) for line in log.splitlines() if line.isdigit()]
