"""Whether the driver, and the modes that it has put the GPUs into, are as declared."""

from packaging.specifiers import SpecifierSet

from pytest_llmdeploy.checks.conditions import can_be_sliced, on_gpus
from pytest_llmdeploy.checks.decorator import check
from pytest_llmdeploy.checks.expect import Expect
from pytest_llmdeploy.evidence import Judgement, Status, judged
from pytest_llmdeploy.facts import nvml_words
from pytest_llmdeploy.probes import Host
from pytest_llmdeploy.probes.fields import Field
from pytest_llmdeploy.verdict import Readings


@check("Driver version", require="driver", hint="change the node's driver, or require.driver")
def driver_version(host: Host, required: str, expect: Expect) -> None:
    """The driver's version is within the declared range."""
    expect.judge(_in_range("the driver", required, host.driver.version, host))


@check("CUDA version", require="cuda", hint="change the node's driver, or require.cuda")
def cuda_version(host: Host, required: str, expect: Expect) -> None:
    """The CUDA version that the driver supports is within the declared range."""
    expect.judge(_in_range("CUDA", required, host.driver.cuda, host))


@check(
    "Compute mode",
    when=on_gpus,
    hint="nvidia-smi -c DEFAULT: in another mode, not every process of vLLM can open its GPU",
)
def compute_mode(host: Host, expect: Expect) -> None:
    """Any number of processes may open a GPU, as those of vLLM do."""
    mode = Readings.of(host.devices.read(Field.COMPUTE_MODE))
    expect.judge(mode.among([0], nvml_words("compute_mode"), "on each"))


@check(
    "Persistence mode",
    require="persistence",
    hint="run nvidia-persistenced, or nvidia-smi -pm 1",
)
def persistence(host: Host, expect: Expect) -> None:
    """The driver stays loaded when no process uses a GPU."""
    mode = Readings.of(host.devices.read(Field.PERSISTENCE_MODE))
    expect.judge(mode.among([1], nvml_words("persistence_mode"), "on each"))


@check(
    "MIG mode",
    when=can_be_sliced,
    hint="nvidia-smi -i <number> -mig 0; or declare the slice as hardware.device, with its memory",
)
def mig(host: Host, expect: Expect) -> None:
    """The GPUs are whole, as those of the catalogue are."""
    mode = Readings.of(host.devices.read(Field.MIG_MODE))
    expect.judge(mode.among([0], nvml_words("mig_mode"), "on each"))


def _in_range(what: str, required: str, found: str, host: Host) -> Judgement:
    requirement, evidence = required, {"source": host.devices.source}
    if not found:
        result = host.driver.problem or f"unsupported: the version of {what} is not told here"
        return Judgement(
            status=Status.ERROR, requirement=requirement, result=result, evidence=evidence
        )
    good = SpecifierSet(required).contains(found, prereleases=True)
    return judged(good, requirement, found, evidence=evidence)
