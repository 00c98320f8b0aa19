"""Machines as flat keys: what the fake NVML answers for n GPUs of one kind.

A key is looked for as `gpu3.<key>`, then `gpu.<key>`, then `<key>`; a MIG slice looks for
`gpu3.mig1.<key>` and `gpu.mig.<key>` before those of its parent. An empty value hides the wider
keys and answers NOT_SUPPORTED.
"""

import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from types import MappingProxyType

Value = str | int

MIB = 1 << 20
RESERVED_MIB = 668
IDLE_MIB = 4
NODE, SYSTEM = 40, 50
P2P_OK, P2P_NOT_SUPPORTED = 0, 5
SWITCH = 2

IDLE: Mapping[str, Value] = MappingProxyType(
    {
        "sys.driver": "580.95.05",
        "sys.nvml": "13.580.95.05",
        "sys.cuda": 13000,
        "topo": SYSTEM,
        "gpu.clock.graphics": 345,
        "gpu.clock.memory": 2619,
        "gpu.clock.sm": 345,
        "gpu.clocks.reasons": 1,
        "gpu.compute_mode": 0,
        "gpu.ecc.corrected.aggregate": 0,
        "gpu.ecc.corrected.volatile": 0,
        "gpu.ecc.mode": 1,
        "gpu.ecc.pending": 1,
        "gpu.ecc.uncorrected.aggregate": 0,
        "gpu.ecc.uncorrected.volatile": 0,
        "gpu.field.230": 0,  # NVML_FI_DEV_GET_GPU_RECOVERY_ACTION
        "gpu.mem.reserved": RESERVED_MIB * MIB,
        "gpu.mem.used": IDLE_MIB * MIB,
        "gpu.pcie.max_width": 16,
        "gpu.pcie.width": 16,
        "gpu.persistence": 1,
        "gpu.power": 71_000,
        "gpu.rows.corrected": 0,
        "gpu.rows.failed": 0,
        "gpu.rows.pending": 0,
        "gpu.rows.uncorrected": 0,
        "gpu.temperature": 34,
        "gpu.util.gpu": 0,
        "gpu.util.memory": 0,
    }
)


@dataclass(frozen=True)
class Slice:
    """A MIG device: its profile, as in `3g.40gb`, and its memory."""

    name: str
    memory_mib: int


@dataclass(frozen=True)
class Profile:
    """One kind of GPU, idle and healthy."""

    name: str
    product: str
    memory_mib: int
    capability: tuple[int, int]
    pci_id: int
    pcie_gen: int
    nvlink_lanes: int = 0
    nvlink_version: int = 0
    fabric: bool = False
    mig_capable: bool = True
    slices: tuple[Slice, ...] = ()

    def keys(self, count: int = 8) -> dict[str, Value]:
        """The description of a machine with `count` of these GPUs."""
        return {
            **IDLE,
            "sys.count": count,
            "gpu.name": self.product,
            "gpu.cc.major": self.capability[0],
            "gpu.cc.minor": self.capability[1],
            "gpu.mem.total": self.memory_mib * MIB,
            "gpu.pci.id": self.pci_id,
            "gpu.pcie.gen": self.pcie_gen,
            "gpu.pcie.max_gen": self.pcie_gen,
            **dict(self._links()),
            **dict(self._mig(count)),
            **dict(self._places(count)),
        }

    def uuid(self, *place: int, prefix: str = "GPU") -> str:
        """The same UUID in each run, and another for each kind and place."""
        return f"{prefix}-{uuid.uuid5(uuid.NAMESPACE_OID, f'{self.name}/{place}')}"

    def _places(self, count: int) -> Iterator[tuple[str, Value]]:
        """Two sockets, the first half of the GPUs on the first."""
        socket = [2 * gpu // count for gpu in range(count)]
        for gpu in range(count):
            yield f"gpu{gpu}.uuid", self.uuid(gpu)
            yield f"gpu{gpu}.pci", f"{gpu // 8:08X}:{0x1B + 0x10 * (gpu % 8):02X}:00.0"
            yield f"gpu{gpu}.numa", socket[gpu]
            yield f"topo.{gpu}.{gpu}", 0
        for one, other in combinations(range(count), 2):
            if socket[one] == socket[other]:
                yield f"topo.{one}.{other}", NODE

    def _links(self) -> Iterator[tuple[str, Value]]:
        peers = P2P_NOT_SUPPORTED if self.slices else P2P_OK
        for capability in ("read", "write", "atomics", "pci"):
            yield f"p2p.{capability}", peers
        yield "p2p.nvlink", peers if self.nvlink_lanes else P2P_NOT_SUPPORTED
        if self.nvlink_lanes:
            yield "gpu.nvlink.lanes", self.nvlink_lanes
            yield "gpu.nvlink.version", self.nvlink_version
            yield "gpu.nvlink.remote", SWITCH
        if self.fabric:
            yield "gpu.fabric.state", 3  # completed
            yield "gpu.fabric.status", 0
            yield "gpu.fabric.clique", 0
            yield "gpu.fabric.health", 2  # bandwidth not degraded

    def _mig(self, count: int) -> Iterator[tuple[str, Value]]:
        if self.mig_capable:
            yield "gpu.mig.mode", int(bool(self.slices))
            yield "gpu.mig.pending", int(bool(self.slices))
            yield "gpu.mig.max", 7
            yield "gpu.mig.count", len(self.slices)
        if self.slices:
            yield "gpu.util.gpu", ""
        for gpu in range(count):
            for index, part in enumerate(self.slices):
                scope = f"gpu{gpu}.mig{index}"
                yield f"{scope}.uuid", self.uuid(gpu, index, prefix="MIG")
                yield f"{scope}.name", f"{self.product} MIG {part.name}"
                yield f"{scope}.mem.total", part.memory_mib * MIB
                yield f"{scope}.mem.reserved", 0
                yield f"{scope}.gi", index + 1
                yield f"{scope}.ci", 0


H100 = Profile(
    name="H100-SXM-80GB",
    product="NVIDIA H100 80GB HBM3",
    memory_mib=81559,
    capability=(9, 0),
    pci_id=0x233010DE,
    pcie_gen=5,
    nvlink_lanes=18,
    nvlink_version=6,
    fabric=True,
)
H200 = replace(
    H100, name="H200-SXM-141GB", product="NVIDIA H200", memory_mib=143771, pci_id=0x233510DE
)
B200 = replace(
    H100,
    name="B200-SXM-180GB",
    product="NVIDIA B200",
    memory_mib=183359,
    capability=(10, 0),
    pci_id=0x290110DE,
    nvlink_version=7,
)
A100 = Profile(
    name="A100-SXM-80GB",
    product="NVIDIA A100-SXM4-80GB",
    memory_mib=81920,
    capability=(8, 0),
    pci_id=0x20B210DE,
    pcie_gen=4,
    nvlink_lanes=12,
    nvlink_version=4,
)
L40S = Profile(
    name="L40S-48GB",
    product="NVIDIA L40S",
    memory_mib=46068,
    capability=(8, 9),
    pci_id=0x26B910DE,
    pcie_gen=4,
    mig_capable=False,
)
H100_MIG = replace(
    H100, name="H100-SXM-80GB-MIG", slices=(Slice("3g.40gb", 40448), Slice("3g.40gb", 40448))
)

PROFILES: Mapping[str, Profile] = MappingProxyType(
    {profile.name: profile for profile in (H100, H200, A100, L40S, B200, H100_MIG)}
)
