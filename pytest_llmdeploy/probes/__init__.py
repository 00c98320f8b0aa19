"""What hardware and server say: NVML, worker processes, vLLM's endpoints.

What asks a server (`probes.endpoint`) is imported when there is one.
"""

from pytest_llmdeploy.probes.devices import Device, Devices
from pytest_llmdeploy.probes.host import Host, is_loopback, read_host, read_used_gpus

__all__ = [
    "Device",
    "Devices",
    "Host",
    "is_loopback",
    "read_host",
    "read_used_gpus",
]
