"""The pipeline, as fixtures: spec → plan → host → server → traffic → stopped.

Every test may ask for them, in a spec's own checks and in any other test file; those of the same
spec share one deployment. Importing this module costs nothing beyond pytest itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from _pytest.outcomes import Failed

if TYPE_CHECKING:
    from pytest_llmdeploy.baseline import Earlier
    from pytest_llmdeploy.deployment import Deployment
    from pytest_llmdeploy.load import Traffic
    from pytest_llmdeploy.plan import Plan
    from pytest_llmdeploy.probes import Host
    from pytest_llmdeploy.serving import Server, Stopped
    from pytest_llmdeploy.session import Session
    from pytest_llmdeploy.spec import Spec

SESSION: pytest.StashKey[Session] = pytest.StashKey()


class NotServing(Failed):
    """There is no server to check; the text says why."""

    __module__ = "builtins"


@pytest.fixture(scope="session")
def _deployment(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The deployment of one spec; whatever it launched ends with it."""
    path = getattr(request, "param", None)
    if path is None:
        pytest.skip("needs a deployment: give --deploy-spec")
    deployment = request.config.stash[SESSION].deployment(path)
    yield deployment
    try:
        deployment.close()
    except KeyboardInterrupt:
        deployment.close()
        # The second Ctrl-C of a run that ends already: nothing runs any more, the summary comes.
        if request.session.exitstatus is not pytest.ExitCode.INTERRUPTED:
            raise


@pytest.fixture(scope="session")
def spec(_deployment: Deployment) -> Spec:
    """The spec: what is deployed, and what it must achieve."""
    return _deployment.spec


@pytest.fixture(scope="session")
def plan(_deployment: Deployment) -> Plan:
    """What follows from the spec without running anything."""
    return _deployment.plan


@pytest.fixture(scope="session")
def baseline(_deployment: Deployment) -> Earlier:
    """The run of this spec to compare with, from --deploy-baseline."""
    if _deployment.baseline is None:
        pytest.skip("needs an earlier run to compare with: give --deploy-baseline")
    return _deployment.baseline


@pytest.fixture(scope="session")
def host(_deployment: Deployment) -> Host:
    """This machine, before anything is launched."""
    return _deployment.host


@pytest.fixture(scope="session")
def server(_deployment: Deployment) -> Server:
    """The server, ready: launched from the spec, or attached to with --deploy-url."""
    from pytest_llmdeploy.deployment import RefusedError  # noqa: PLC0415 - see above
    from pytest_llmdeploy.serving import ServerFailedError  # noqa: PLC0415

    try:
        return _deployment.server
    except RefusedError as refusal:
        pytest.skip(str(refusal))
    except ServerFailedError as failure:
        raise NotServing(str(failure), pytrace=False) from None


@pytest.fixture(scope="session")
def traffic(_deployment: Deployment, server: Server) -> Traffic:  # noqa: ARG001 - comes first
    """What was sent to the server under the spec's workloads, and what came back."""
    from pytest_llmdeploy.deployment import RefusedError  # noqa: PLC0415 - see above

    try:
        return _deployment.traffic
    except RefusedError as refusal:
        pytest.skip(str(refusal))


@pytest.fixture(scope="session")
def stopped(_deployment: Deployment, server: Server) -> Stopped:  # noqa: ARG001 - comes first
    """What a launched server left behind when it was stopped."""
    from pytest_llmdeploy.deployment import RefusedError  # noqa: PLC0415 - see above

    try:
        return _deployment.stopped
    except RefusedError as refusal:
        pytest.skip(str(refusal))


PUBLIC = (spec, plan, baseline, host, server, traffic, stopped)
