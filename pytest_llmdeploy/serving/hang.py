"""What a server that hangs waits for, as far as the process table says."""

from __future__ import annotations

from collections.abc import Iterable

import psutil

from pytest_llmdeploy.serving.listening import named


def stopped_processes(pids: Iterable[int]) -> str:
    """Which of these are stopped, as by SIGSTOP or a debugger; empty when none is."""
    names = [named(pid) for pid in sorted(pids) if _is_stopped(pid)]
    return f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} stopped" if names else ""


def _is_stopped(pid: int) -> bool:
    try:
        status = psutil.Process(pid).status()
    except psutil.Error:
        return False
    return status in {psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP}
