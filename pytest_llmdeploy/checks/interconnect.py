"""Whether the devices of a tensor-parallel group reach each other as declared."""

from pytest_llmdeploy.checks.decorator import check
from pytest_llmdeploy.checks.expect import Expect
from pytest_llmdeploy.evidence import judged
from pytest_llmdeploy.probes import Host
from pytest_llmdeploy.spec import Spec


@check(
    "NVLink in TP group",
    require="interconnect",
    hint="check nvidia-smi nvlink --status, the fabric manager, and which GPUs are visible",
)
def interconnect(host: Host, spec: Spec, expect: Expect) -> None:
    """Every pair of GPUs in a tensor-parallel group is connected by NVLink."""
    if spec.parallel.tensor == 1:
        expect.judge(judged(True, "all pairs", "TP 1 has none", evidence={"source": "the spec"}))
        return
    expect(host.nvlink, "pairs").hold()
