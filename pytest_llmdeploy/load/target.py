"""The server that is put under load, and how much may be sent to it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pytest_llmdeploy.probes.endpoint import Endpoint

# No tokenizer has fewer tokens than there are bytes.
_DEFAULT_VOCAB = 256


@dataclass
class Allowance:
    """How many requests may still be sent to a server, and how many of them be in flight."""

    requests: int = sys.maxsize
    at_once: int = sys.maxsize


@dataclass(frozen=True, kw_only=True)
class Target:
    """The server under load. `replicas` are all that serve behind `endpoint` (none: it alone);
    `death` says why it can serve no more, and is empty while it can; None where that can't be
    known. `stopped` says which of its processes are, `allowance` is used up by what is sent.
    """

    endpoint: Endpoint
    model: str
    replicas: Sequence[Endpoint] = ()
    vocab: int = _DEFAULT_VOCAB
    death: Callable[[], str] | None = None
    stopped: Callable[[], str] = str
    progress: Callable[[str], None] = lambda _text: None
    allowance: Allowance = field(default_factory=Allowance)
