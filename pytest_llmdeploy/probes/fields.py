"""What is read of a device beside its memory, by name: the same whoever reads it."""

from __future__ import annotations

from enum import StrEnum


class Field(StrEnum):
    """One reading of a device. `unit` is that of its value; a mode or a state has none."""

    UTILIZATION = "utilization"
    """Of the time, in which anything ran on it; of a CPU worker, the share of its cores."""
    TEMPERATURE = "temperature"
    POWER = "power"
    SM_CLOCK = "sm_clock"
    CLOCKS_EVENT_REASONS = "clocks_event_reasons"
    """NVML's bit mask of what holds the clocks back."""
    ECC_UNCORRECTED = "ecc_uncorrected"
    """Uncorrected errors since the driver was loaded."""
    ROWS_PENDING = "rows_pending"
    """1 when rows of memory wait for a reset to be remapped."""
    ROWS_FAILED = "rows_failed"
    """1 when a row of memory could not be remapped."""
    RECOVERY_ACTION = "recovery_action"
    """What NVML asks for: 0 is nothing."""
    PCIE_GENERATION = "pcie_generation"
    PCIE_MAX_GENERATION = "pcie_max_generation"
    PCIE_WIDTH = "pcie_width"
    PCIE_MAX_WIDTH = "pcie_max_width"
    NUMA_NODE = "numa_node"
    NVLINK_LANES = "nvlink_lanes"
    NVLINK_LANES_UP = "nvlink_lanes_up"
    FABRIC_STATE = "fabric_state"
    """3 when the GPU is registered with its NVSwitch fabric."""
    FABRIC_STATUS = "fabric_status"
    """0 when that went well."""
    FABRIC_DEGRADED = "fabric_degraded"
    """1 when the fabric has less bandwidth than it should."""
    COMPUTE_MODE = "compute_mode"
    PERSISTENCE_MODE = "persistence_mode"
    MIG_MODE = "mig_mode"

    @property
    def unit(self) -> str:
        return _UNITS.get(self, "")


_UNITS = {
    Field.UTILIZATION: "fraction",
    Field.TEMPERATURE: "°C",
    Field.POWER: "W",
    Field.SM_CLOCK: "MHz",
    Field.ECC_UNCORRECTED: "errors",
    Field.NVLINK_LANES: "lanes",
    Field.NVLINK_LANES_UP: "lanes",
    Field.PCIE_WIDTH: "lanes",
    Field.PCIE_MAX_WIDTH: "lanes",
}

CHANGING = frozenset(
    {
        Field.UTILIZATION,
        Field.TEMPERATURE,
        Field.POWER,
        Field.SM_CLOCK,
        Field.CLOCKS_EVENT_REASONS,
        Field.PCIE_GENERATION,
        Field.PCIE_MAX_GENERATION,
        Field.ECC_UNCORRECTED,
    }
)
"""What is looked at each second under load: what then changes, and what that is compared with."""
