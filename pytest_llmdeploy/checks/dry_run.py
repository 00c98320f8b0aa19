"""Whether vLLM itself accepts the deployment, asked before anything is launched."""

import pytest

from pytest_llmdeploy.checks.decorator import check
from pytest_llmdeploy.checks.expect import Expect
from pytest_llmdeploy.evidence import Judgement, Status, judged
from pytest_llmdeploy.spec import Spec


@check(
    "vLLM accepts this configuration",
    require="dry_run",
    hint="the sentence is vLLM's own: change the key of serve, parallel or model that it is about",
)
def accepted_by_vllm(spec: Spec, expect: Expect) -> None:
    """VLLM's parser takes the arguments of the launch, and makes its configuration of them."""
    from pytest_llmdeploy.serving.dry_run import NoDryRunError, dry_run  # noqa: PLC0415 - if asked

    try:
        found = dry_run(spec)
    except NoDryRunError as reason:
        pytest.skip(str(reason))
    requirement = "vLLM's own parser and configuration accept it"
    evidence = {"source": f"create_engine_config() of vLLM {found.version}"}
    if found.problem:
        failure = Judgement(status=Status.ERROR, requirement=requirement, result=found.problem)
        expect.judge(failure)
    else:
        result = found.refusal or f"accepted by vLLM {found.version}"
        expect.judge(judged(not found.refusal, requirement, result, evidence=evidence))
