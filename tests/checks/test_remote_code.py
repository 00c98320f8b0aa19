"""A model that brings its own code is a row of its own."""

from pytest_llmdeploy.checks import Registry, requirements
from pytest_llmdeploy.evidence import Status
from tests.checks.scenes import Scene

# It says what is, and has nothing to fail for.
DISCLOSED = {"remote_code"}


def test_it_is_shown_where_it_is_allowed() -> None:
    """With the model, and the revision if it is pinned."""
    serve = {"serve": {"max_model_len": 8192, "trust_remote_code": True}}
    row = Scene(spec=serve).judge("remote_code")
    assert (row.status, row.requirement) == (Status.PASS, "allowed by the spec")
    assert row.result.endswith(" at whatever revision is there")


def test_it_is_no_row_where_it_is_not() -> None:
    """Which is what nearly everybody wants."""
    names = {found.check.name for found in requirements(Scene().declared(), Registry())}
    assert "remote_code" not in names
