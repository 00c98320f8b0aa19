"""Whether the server is the one that was meant, configured as declared."""

from packaging.specifiers import SpecifierSet

from pytest_llmdeploy.checks.decorator import check
from pytest_llmdeploy.checks.expect import Expect
from pytest_llmdeploy.evidence import judged
from pytest_llmdeploy.plan import Plan
from pytest_llmdeploy.serving import Server
from pytest_llmdeploy.serving.drift import drift
from pytest_llmdeploy.spec import Spec


@check("Model served", hint="check --deploy-url, model.id and serve.served_model_name")
def model_served(server: Server, spec: Spec, expect: Expect) -> None:
    """/v1/models lists the model that the spec names."""
    wanted, found = spec.served_model, str(server.model.get("id", "no model"))
    expect.judge(judged(found == wanted, wanted, found, evidence={"source": "/v1/models"}))


@check("Engine version", require="engine.version", hint="change the image, or engine.version")
def engine_version(server: Server, required: str, expect: Expect) -> None:
    """The engine's version is within the declared range."""
    good = SpecifierSet(required).contains(server.version, prereleases=True)
    expect.judge(judged(good, f"vLLM {required}", server.version, evidence={"source": "/version"}))


@check(
    "Server as declared",
    hint="the running server was started with other flags than the spec's: the evidence has both",
)
def server_limits(server: Server, plan: Plan, expect: Expect) -> None:
    """Every setting that the server shows is the declared one, of each replica."""
    expect.judge(drift(plan, server.settings(), len(server.replicas)))
