"""Machines of 8 × H100 with something wrong, and the rows that it turns."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from tests.fake_nvml import A100, H100, H100_MIG, FakeNvml, Profile, Value

MIB = 1024**2
GIB = 1024**3
USED = round(0.8 * H100.memory_mib) * MIB
# A process of this machine that is ours, another that is not, and one that is none of this machine.
OURS, FOREIGN, HIDDEN = os.getpid(), 1, 2**30

SERVING: Mapping[str, Value] = MappingProxyType(
    {
        "gpu.mem.used": USED,
        "gpu.processes": f"{OURS}:{USED}",
        "gpu.util.gpu": 97,
        "gpu.clocks.reasons": 4,
        "gpu.clock.sm": 1755,
        "gpu.power": 640_000,
        "gpu.temperature": 61,
    }
)
"""What is different while the server serves: its process and its memory on every GPU."""

# What is read of every GPU: before the launch, in that order, and while it serves.
AFTER_ECC = (
    *("row_remapping", "recovery", "pcie_width", "numa", "nvlink_lanes", "nvlink_fabric"),
    *("compute_mode", "persistence", "mig"),
)
HOST = ("memory_total", "devices_idle", "ecc", *AFTER_ECC)
MEMORY = ("memory_utilization", "memory_headroom")
LOAD = (*(f"{name}_under_load" for name in MEMORY), "clocks", "pcie_generation")
LIVE = (*MEMORY, *LOAD, "memory_balance", "only_ours")
VERSIONS = ("driver_version", "cuda_version")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """`wrong` are the checks that do not pass, with their status. `keys` are what differs from a
    sound machine, `serving` and `stopped` what differs further while the server serves and after.
    `visible` is CUDA_VISIBLE_DEVICES, and `groups` into how many the GPUs are divided.
    """

    wrong: Mapping[str, str] = field(default_factory=dict)
    keys: Mapping[str, Value] = field(default_factory=dict)
    serving: Mapping[str, Value] = field(default_factory=dict)
    stopped: Mapping[str, Value] = field(default_factory=dict)
    profile: Profile = H100
    count: int = 8
    visible: str | None = None
    groups: int = 1

    def states(self, fake: FakeNvml) -> Iterator[str]:
        """Becomes the machine before the launch, while it serves, and after the stop."""
        fake.write(self.profile, self.keys, count=self.count)
        yield "host"
        serving = {**SERVING, **self.keys, **self.serving}
        fake.write(self.profile, serving, count=self.count)
        yield "live"
        fake.write(self.profile, {**self.keys, **self.stopped}, count=self.count)
        yield "stopped"


def fails(*names: str) -> dict[str, str]:
    return dict.fromkeys(names, "FAIL")


def unread(*names: str) -> dict[str, str]:
    return dict.fromkeys(names, "ERROR")


def fault(code: int) -> Mapping[str, Value]:
    """NVML does not start."""
    return {"error.InitWithFlags": code}


NO_DEVICES = unread(
    *("devices_present", "interconnect", "ranks_up", "xids", "memory_returned"), *HOST, *LIVE
)
NO_DRIVER = {**NO_DEVICES, **unread(*VERSIONS)}

MACHINES: Mapping[str, Machine] = MappingProxyType(
    {
        "sound": Machine(),
        "UUIDs in another order": Machine(
            keys={f"gpu{index}.uuid": H100.uuid(7 - index) for index in range(8)}
        ),
        "older memory call": Machine(keys={"error.MemoryInfo_v2": 13}),
        "older clocks call": Machine(keys={"error.CurrentClocksEventReasons": 13}),
        "bandwidth of the fabric not told": Machine(keys={"gpu.fabric.health": 0}),
        "at the power cap": Machine(serving={"gpu.clocks.reasons": 4}),
        "seven GPUs": Machine(count=7, wrong=fails("devices_present", "ranks_up")),
        "another model": Machine(
            profile=A100, wrong={**fails("devices_present"), **unread("nvlink_fabric")}
        ),
        "GPU lost": Machine(
            keys={"gpu3.error.*": 15},
            wrong={
                **unread("interconnect", *HOST, *LIVE, "memory_returned"),
                **fails("devices_present"),
            },
        ),
        "GPU lost while serving": Machine(serving={"gpu3.error.*": 15}, wrong=unread(*LIVE)),
        "library missing": Machine(keys=fault(12), wrong=NO_DRIVER),
        "driver not loaded": Machine(keys=fault(9), wrong=NO_DRIVER),
        "driver and library differ": Machine(keys=fault(18), wrong=NO_DRIVER),
        "driver hangs": Machine(keys={"delay_ms.InitWithFlags": 60_000}, wrong=NO_DRIVER),
        "GPU hangs": Machine(
            keys={"gpu3.delay_ms.RemappedRows": 60_000},
            wrong=unread(*AFTER_ECC, *LIVE, "memory_returned"),
        ),
        "GPU hangs while serving": Machine(
            serving={"gpu3.delay_ms.MemoryInfo": 60_000},
            stopped={"gpu3.delay_ms.MemoryInfo": 60_000},
            wrong=unread(*LIVE, "memory_returned"),
        ),
        "one lane down": Machine(keys={"gpu5.nvlink.7": 0}, wrong=fails("nvlink_lanes")),
        "no NVLink between two": Machine(keys={"p2p.2.5.nvlink": 5}, wrong=fails("interconnect")),
        "NVLink between two not told": Machine(
            keys={"gpu3.error.P2PStatus": 3}, wrong=unread("interconnect")
        ),
        "fabric in progress": Machine(keys={"gpu2.fabric.state": 2}, wrong=fails("nvlink_fabric")),
        "fabric failed": Machine(keys={"gpu2.fabric.status": 999}, wrong=fails("nvlink_fabric")),
        "fabric degraded": Machine(keys={"gpu2.fabric.health": 1}, wrong=fails("nvlink_fabric")),
        "uncorrected ECC error": Machine(
            keys={"gpu6.ecc.uncorrected.volatile": 1}, wrong=fails("ecc")
        ),
        "ECC not told": Machine(keys={"gpu6.error.TotalEccErrors": 3}, wrong=unread("ecc")),
        "remap pending": Machine(keys={"gpu1.rows.pending": 1}, wrong=fails("row_remapping")),
        "remap failed": Machine(keys={"gpu1.rows.failed": 1}, wrong=fails("row_remapping")),
        "recovery action": Machine(keys={"gpu4.field.230": 1}, wrong=fails("recovery")),
        "too hot": Machine(serving={"gpu7.clocks.reasons": 0x40}, wrong=fails("clocks")),
        "power brake": Machine(serving={"gpu7.clocks.reasons": 0x84}, wrong=fails("clocks")),
        "slow PCIe under load": Machine(
            serving={"gpu0.pcie.gen": 3}, wrong=fails("pcie_generation")
        ),
        "slow PCIe at rest": Machine(keys={"gpu.pcie.gen": 1}, serving={"gpu.pcie.gen": 5}),
        "PCIe width 8": Machine(keys={"gpu0.pcie.width": 8}, wrong=fails("pcie_width")),
        "exclusive process": Machine(keys={"gpu.compute_mode": 3}, wrong=fails("compute_mode")),
        "prohibited": Machine(keys={"gpu2.compute_mode": 2}, wrong=fails("compute_mode")),
        "persistence off": Machine(keys={"gpu2.persistence": 0}, wrong=fails("persistence")),
        "persistence not told": Machine(
            keys={"gpu2.error.PersistenceMode": 4}, wrong=unread("persistence")
        ),
        "old driver": Machine(keys={"sys.driver": "535.10"}, wrong=fails("driver_version")),
        "old CUDA": Machine(keys={"sys.cuda": 12020}, wrong=fails("cuda_version")),
        "driver not told": Machine(keys={"error.DriverVersion": 999}, wrong=unread(*VERSIONS)),
        "CUDA library missing": Machine(
            keys={"error.CudaDriverVersion": 12}, wrong=unread("cuda_version")
        ),
        "MIG on": Machine(keys={"gpu3.mig.mode": 1}, wrong=fails("mig")),
        "slices": Machine(
            profile=H100_MIG,
            serving={"gpu.mem.used": 32_000 * MIB},
            wrong=fails(
                *("devices_present", "memory_total", "mig", "interconnect"),
                *("memory_headroom", "memory_headroom_under_load"),
            ),
        ),
        "visible twice": Machine(visible="0,1,2,3,4,5,6,6", wrong=NO_DEVICES),
        "visible by UUID": Machine(visible=",".join(H100.uuid(i)[:12] for i in range(8))),
        "four visible": Machine(visible="4,5,6,7", wrong=fails("devices_present", "ranks_up")),
        "none visible": Machine(
            visible="", wrong={**NO_DEVICES, **fails("devices_present", "ranks_up")}
        ),
        "another order": Machine(visible="7,6,5,4,3,2,1,0"),
        "two groups": Machine(groups=2),
        "groups across NUMA nodes": Machine(
            groups=2, visible="0,1,4,5,2,3,6,7", wrong=fails("numa")
        ),
        "NUMA not told": Machine(keys={"gpu0.error.MemoryAffinity": 3}, wrong=unread("numa")),
        "foreign process": Machine(
            keys={"gpu3.processes": f"{FOREIGN}:{64 * MIB}", "gpu3.mem.used": 64 * MIB},
            serving={
                "gpu3.processes": f"{OURS}:{USED},{FOREIGN}:{64 * MIB}",
                "gpu3.mem.used": USED + 64 * MIB,
            },
            wrong=fails("devices_idle", "only_ours"),
        ),
        "foreign process while serving": Machine(
            serving={"gpu3.processes": f"{OURS}:{USED},{FOREIGN}:{MIB}"},
            wrong=fails("only_ours"),
        ),
        "memory in use by nobody": Machine(
            keys={"gpu3.mem.used": 2 * GIB},
            serving={"gpu3.mem.used": USED + 2 * GIB},
            wrong=fails("devices_idle"),
        ),
        "hidden pids": Machine(serving={"gpu.processes": f"{HIDDEN}:{USED}"}),
        "no pids": Machine(serving={"gpu.processes": ""}),
        "hidden foreign process": Machine(
            keys={"gpu3.processes": f"{HIDDEN + 1}:{2 * GIB}", "gpu3.mem.used": 2 * GIB},
            serving={
                "gpu.processes": f"{HIDDEN}:{USED}",
                "gpu3.processes": f"{HIDDEN}:{USED},{HIDDEN + 1}:{2 * GIB}",
                "gpu3.mem.used": USED + 2 * GIB,
            },
            wrong=fails("devices_idle", "only_ours"),
        ),
        "processes not told": Machine(
            keys={"gpu.error.ComputeRunningProcesses": 4},
            wrong=unread("devices_idle", "only_ours"),
        ),
        "idle rank": Machine(
            serving={"gpu3.processes": "", "gpu3.mem.used": 4 * MIB},
            wrong=fails("only_ours", "memory_balance"),
        ),
        "memory unsupported": Machine(
            keys={"gpu3.error.MemoryInfo": 3},
            wrong=unread(
                *("memory_total", "devices_idle", "memory_balance", "memory_returned"),
                *(*MEMORY, *LOAD[:2]),
            ),
        ),
        "memory 6 % less on one rank": Machine(
            serving={"gpu3.mem.used": round(USED * 0.94)}, wrong=fails("memory_balance")
        ),
        "one rank fuller": Machine(
            serving={"gpu3.mem.used": round(USED * 1.08)},
            wrong=fails(*MEMORY, *LOAD[:2], "memory_balance"),
        ),
        "memory left in use": Machine(
            stopped={"gpu3.mem.used": 8 * GIB}, wrong=fails("memory_returned")
        ),
        "smaller memory": Machine(
            keys={"gpu3.mem.total": 80_700 * MIB}, wrong=fails("memory_total")
        ),
    }
)
