"""Waiting for a driver that may never answer: it is asked in threads, and for so long only."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from threading import Thread
from typing import Generic, TypeVar

SECONDS = 3.0

_T = TypeVar("_T")
# A call that hangs can't be ended. Until it comes back, the same is not asked again.
_hanging: dict[str, Thread] = {}


def answers(questions: Mapping[str, Iterable[_T]]) -> dict[str, list[_T]]:
    """What each question, asked beside the others, has brought when all are answered or the time
    is over.
    """
    asked = {name: _Question(name, items) for name, items in questions.items()}
    for question in asked.values():
        question.ask()
    end = time.monotonic() + SECONDS
    return {name: question.answer(end) for name, question in asked.items()}


def timed_out(who: str) -> str:
    """The problem of what was not answered."""
    return f"error: timed out: {who} did not answer within {SECONDS:g} s"


@dataclass
class _Question(Generic[_T]):
    name: str
    items: Iterable[_T]
    heard: list[_T] = field(default_factory=list)
    fault: Exception | None = None
    thread: Thread | None = None

    def ask(self) -> None:
        stuck = _hanging.get(self.name)
        if stuck is None or not stuck.is_alive():
            self.thread = Thread(target=self._listen, name=self.name, daemon=True)
            self.thread.start()

    def answer(self, end: float) -> list[_T]:
        if self.thread is not None:
            self.thread.join(max(0.0, end - time.monotonic()))
            if self.thread.is_alive():
                _hanging[self.name] = self.thread
        if self.fault is not None:
            raise self.fault
        return list(self.heard)

    def _listen(self) -> None:
        try:
            for item in self.items:
                self.heard.append(item)
        except Exception as fault:  # noqa: BLE001 - whoever asked raises it
            self.fault = fault
