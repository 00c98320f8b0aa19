"""What the workers of a launched server say of themselves: added to the launch, and asked once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

from pytest_llmdeploy.probes.endpoint import Endpoint, EndpointError
from pytest_llmdeploy.serving.command import Command, LaunchError

# A folder of its own: on vLLM's path, nothing else of ours may stand in the way of its imports.
EXTENSION = Path(__file__).with_name("extension")
_PATH = "PYTHONPATH"
_DEV_MODE = {"VLLM_SERVER_DEV_MODE": "1"}
_OPTION = "--worker-extension-cls"
_ARGUMENT = f"{_OPTION}=llmdeploy_worker.Facts"
_METHOD = "llmdeploy_facts"
_SECONDS = 30.0
# What a launch gets for it, as the report tells it.
ADDED = (*(f"{n}={v}" for n, v in _DEV_MODE.items()), f"{_PATH}={EXTENSION}", _ARGUMENT)


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """One worker as it knows itself; what it does not know is None. What vLLM measures while it
    starts (weights, activation, CUDA graphs, what is available and consumed) is a GPU worker's.
    """

    pid: int
    rank: int | None
    local_rank: int | None
    device: str
    resident_bytes: int | None = None
    weights_bytes: int | None = None
    activation_bytes: int | None = None
    cuda_graph_bytes: int | None = None
    kv_bytes: int | None = None
    kv_available_bytes: int | None = None
    kv_blocks: int | None = None
    consumed_bytes: int | None = None
    requested_bytes: int | None = None
    total_bytes: int | None = None
    free_bytes: int | None = None

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Self:
        """What a worker answered.

        Raises:
            ValueError: when that is not what the extension says.
        """
        known = {each.name for each in fields(cls)}
        values = {name: value for name, value in raw.items() if name in known}
        figures = {name: value for name, value in values.items() if name != "device"}
        if not all(isinstance(value, int | None) for value in figures.values()):
            msg = f"found {figures}: not all of these are whole numbers"
            raise ValueError(msg)
        return cls(**{**values, "device": str(values.get("device"))})


@dataclass(frozen=True, slots=True)
class Introspection:
    """What the workers answered; `problem` says why not all did. `added` went into the launch."""

    workers: tuple[WorkerFacts, ...] = ()
    problem: str = ""
    added: tuple[str, ...] = ADDED


def introspected(command: Command) -> Command:
    """A command whose server lets its workers be asked.

    Raises:
        LaunchError: when the server has a worker extension of its own.
    """
    if any(argument.partition("=")[0] == _OPTION for argument in command.argv):
        msg = f"vLLM takes one {_OPTION}, and the spec has its own: leave out --deploy-introspect"
        raise LaunchError(msg)
    own = command.environment.get(_PATH, os.environ.get(_PATH))
    path = {_PATH: os.pathsep.join(filter(None, [str(EXTENSION), own]))}
    environment = {**command.environment, **_DEV_MODE, **path}
    return replace(command, argv=(*command.argv, _ARGUMENT), environment=environment)


def introspect(endpoint: Endpoint, ranks: int) -> Introspection:
    """Asks the workers, of which there are as many as `ranks`; once, for after a call that fails
    vLLM mixes up the answers.
    """
    try:
        answers = endpoint.call_workers(_METHOD, _SECONDS)
        workers = tuple(WorkerFacts.of(answer) for answer in answers)
    except EndpointError as error:
        return Introspection(problem=str(error))
    except (TypeError, ValueError, AttributeError) as error:
        return Introspection(problem=f"the workers do not answer as they should: {error}")
    told = f"{len(workers)} of {ranks} workers answer: vLLM asks its first data-parallel engine"
    return Introspection(workers, "" if len(workers) == ranks else told)
