"""One fault: when it strikes, how, and what must come of it."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import psutil

from tests import leftovers
from tests.faults.specs import write
from tests.faults.strikes import at_rest
from tests.leftovers import Family, is_listening, title
from tests.live.conftest import Run, start_run

# What the gate may take beyond the time-outs that its spec has.
BEYOND_SECONDS = 10.0
_UNTIL_IT_STRIKES = 180.0
_LOOK_SECONDS = 0.1
_NOTE_SECONDS = 0.5
_ITS_END_SECONDS = 15.0


@dataclass(frozen=True, kw_only=True)
class Fault:
    """`when` is true of a run at the moment to `strike`. `on` names the deployment (see specs).

    `rows` has a pattern for the status of each row that it is about, by the id after the file;
    `says` is a pattern in one of these rows, or where there are none, in what is printed. `limit`
    is the time-out of the spec that counts from the strike on. `then` is one more run, after which
    nothing may be left.
    """

    name: str
    on: str
    when: Callable[[Run], object]
    strike: Callable[[Run], None] = lambda _run: None
    exit: int | tuple[int, ...]
    rows: Mapping[str, str] = field(default_factory=dict)
    says: str = ""
    limit: str = "workload"
    overrides: Mapping[str, Any] = field(default_factory=dict)
    wrapper: Callable[[Path], Sequence[str]] = lambda _folder: ()
    then: bool = False


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a fault: `seconds` until the gate's verdict, `clean` until nothing was left;
    what the gate printed (`output`), and the server's `log`.
    """

    fault: Fault
    struck: bool
    exit: int | None
    rows: Sequence[Mapping[str, Any]]
    output: str
    log: str
    seconds: float
    clean: float
    limit: float
    left: Sequence[str]

    @property
    def problems(self) -> Sequence[str]:
        """In what it is not as it must be."""
        return list(self._problems())

    @property
    def said(self) -> str:
        """How many rows have which status, and the sentence that says why."""
        counts = Counter(str(row["status"]) for row in self.rows)
        shown = ", ".join(f"{count} {status}" for status, count in counts.items())
        return ": ".join(filter(None, (shown or "no report", self._sentence())))

    def _problems(self) -> Iterator[str]:
        if not self.struck:
            yield "it ended before the fault could strike"
        meant = self.fault.exit if isinstance(self.fault.exit, tuple) else (self.fault.exit,)
        if self.exit not in meant:
            yield f"exit code {self.exit}, not {self.fault.exit}"
        found = {row["id"].partition("::")[2]: row["status"] for row in self.rows}
        for row, pattern in self.fault.rows.items():
            if not re.fullmatch(pattern, found.get(row, "no row")):
                yield f"{row} is {found.get(row, 'no row')}, not {pattern}"
        if self.fault.says and not self._sentence():
            yield f"nothing says {self.fault.says!r}"
        yield from (f"left: {what}" for what in self.left)
        if max(self.seconds, self.clean) > self.limit:
            yield f"{max(self.seconds, self.clean):.1f} s, at most {self.limit:g} s"

    def _sentence(self) -> str:
        """The line that has what must be said."""
        about = [row for row in self.rows if row["id"].partition("::")[2] in self.fault.rows]
        texts = [f"{row['result']}\n{row['hint']}" for row in about] or [self.output]
        for line in "\n".join(texts).splitlines() if self.fault.says else ():
            if re.search(self.fault.says, line):
                return line.strip()
        return ""


def outcome(fault: Fault) -> Outcome:
    """Starts the gate, lets the fault strike, and looks at what comes of it."""
    with _Scene(fault) as scene:
        run = scene.start()
        strikes = scene.wait_for(run)
        scene.note()
        struck = time.monotonic()
        if strikes:
            fault.strike(run)
        while run.process.poll() is None and time.monotonic() - struck < scene.limit:
            scene.note()
            with suppress(subprocess.TimeoutExpired):
                run.process.wait(_NOTE_SECONDS)
        seconds, code = time.monotonic() - struck, run.process.poll()
        if code is not None:
            run.finish(_ITS_END_SECONDS)
        run.close()
        rows = run.entry["rows"] if run.report_path.exists() else ()
        if fault.then:
            scene.start().finish(_UNTIL_IT_STRIKES)
        while (left := list(scene.left())) and time.monotonic() - struck < scene.limit:
            time.sleep(_LOOK_SECONDS)
        clean = time.monotonic() - struck
        found = {"output": run.output, "log": run.log()}
    return Outcome(
        fault=fault,
        struck=strikes,
        exit=code,
        rows=rows,
        seconds=seconds,
        clean=clean,
        limit=scene.limit,
        left=left,
        **found,
    )


class _Scene:
    """A folder with a spec in it, and what is there before and after the gate runs on that."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.family = Family()
        self.known, self.shared = leftovers.shared_memory(), set[str]()
        # Unix sockets allow 107 characters for a path: keep it short.
        self.folder = Path(tempfile.mkdtemp(prefix="f-"))
        self.written = self.folder / "w"
        self.scratch = self.written / "t"
        self.scratch.mkdir(parents=True)
        if fault.when is not at_rest:
            (self.folder / "go").write_text("go")
        self.spec, limits = write(self.folder, fault.on, fault.overrides)
        self.limit = limits[fault.limit] + BEYOND_SECONDS
        self.runs: list[Run] = []
        self.ports: set[int] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for run in self.runs:
            run.close()
        for process in self.family.alive():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        deadline = time.monotonic() + _ITS_END_SECONDS
        while self.family.alive() and time.monotonic() < deadline:
            time.sleep(_LOOK_SECONDS)
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self) -> Run:
        run = start_run(
            self.written,
            "--deploy-spec",
            self.spec,
            wrapper=self.fault.wrapper(self.written),
            TMPDIR=str(self.scratch),
            # Runs know of each other there.
            XDG_RUNTIME_DIR=str(self.scratch),
            # It is meant to stay.
            TORCHINDUCTOR_CACHE_DIR=str(self.folder / "compiled"),
        )
        self.runs.append(run)
        return run

    def wait_for(self, run: Run) -> bool:
        """Whether the moment to strike came."""
        deadline = time.monotonic() + _UNTIL_IT_STRIKES
        while run.process.poll() is None and time.monotonic() < deadline:
            if self.fault.when(run):
                return True
            time.sleep(_LOOK_SECONDS)
        return False

    def note(self) -> None:
        """Remembers the ports that the servers below are told to listen on, and the shared memory
        that they have.
        """
        for process in self.family.alive([run.process.pid for run in self.runs]):
            if match := re.search(r"--port=(\d+)", " ".join(_argv(process))):
                self.ports.add(int(match[1]))
            self.shared |= set(leftovers.mapped(process.pid)) - self.known

    def left(self) -> Iterator[str]:
        """What is there that was not before."""
        for process in self.family.alive():
            yield f"process {process.pid} {title(process)[:60]}"
        yield from (f"port {port}" for port in sorted(self.ports) if is_listening(port))
        for path in (*self.scratch.glob("*"), *self.scratch.glob("llmdeploy/*.json")):
            if path.name != "llmdeploy":
                yield f"temporary {path.name}"
        yield from (f"shared {name}" for name in sorted(self.shared & leftovers.shared_memory()))


def _argv(process: psutil.Process) -> Sequence[str]:
    with suppress(psutil.Error):
        return process.cmdline()
    return ()
