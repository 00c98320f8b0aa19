"""Whether the model brings code of its own, which vLLM then runs."""

from pytest_llmdeploy.checks.decorator import check
from pytest_llmdeploy.checks.expect import Expect
from pytest_llmdeploy.evidence import judged
from pytest_llmdeploy.spec import Spec


def _is_trusted(spec: Spec) -> bool:
    """The spec allows it (`serve.trust_remote_code`)."""
    return spec.serve.trust_remote_code


@check("Remote code", when=_is_trusted)
def remote_code(spec: Spec, expect: Expect) -> None:
    """The spec says that the server runs the model's own code: whoever reads the checklist sees
    whose it is.
    """
    revision = spec.model.revision or "whatever revision is there"
    result = f"runs that of {spec.model.id} at {revision}"
    source = {"source": "serve.trust_remote_code"}
    expect.judge(judged(True, "allowed by the spec", result, evidence=source))
