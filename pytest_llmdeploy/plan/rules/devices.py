"""Ranks, and the devices and nodes that they are put on."""

from __future__ import annotations

from pytest_llmdeploy.plan.rules.given import Broken, count, flag
from pytest_llmdeploy.spec import Spec

_EXTERNAL, _HYBRID = "data_parallel_external_lb", "data_parallel_hybrid_lb"


def devices(spec: Spec) -> Broken:
    needed, there = spec.parallel.devices, spec.hardware.devices
    if needed > there:
        yield "parallel", f"{spec.parallel} needs {needed} devices, the hardware has {there}"


def node_devices(spec: Spec) -> Broken:
    """Without nnodes or Ray, all ranks of a copy are on one node."""
    ranks, there = spec.parallel.world_size, spec.hardware.devices_per_node
    if _is_one_node(spec) and there < ranks <= spec.hardware.devices:
        message = f"{spec.parallel}: {ranks} ranks of a copy on a node that has {there} devices"
        yield "serve.nnodes", f"{message}, and no nnodes or distributed_executor_backend"


def node_copies(spec: Spec) -> Broken:
    """Without nnodes or Ray, copies that are not said to be elsewhere are on this node."""
    parallel, there = spec.parallel, spec.hardware.devices_per_node
    local = count(spec, "data_parallel_size_local")
    ranks = parallel.world_size * (parallel.data if local is None else local)
    if _is_one_node(spec) and parallel.world_size <= there < ranks <= spec.hardware.devices:
        message = f"{spec.parallel}: {ranks} ranks on a node that has {there} devices"
        yield "serve.data_parallel_size_local", f"{message}, and no data_parallel_size_local"


def nodes(spec: Spec) -> Broken:
    count_of_nodes, world = count(spec, "nnodes") or 1, spec.parallel.devices
    if count_of_nodes > 1 and world % count_of_nodes:
        yield "serve.nnodes", f"nnodes {count_of_nodes} does not divide the {world} ranks"
    if count_of_nodes > spec.hardware.nodes:
        message = f"nnodes {count_of_nodes}: the hardware has {spec.hardware.nodes} nodes"
        yield "serve.nnodes", message


def node_groups(spec: Spec) -> Broken:
    """The copies that are on one node are a group, and every group has as many nodes."""
    parallel, several = spec.parallel, count(spec, "nnodes") or 1
    if several <= 1 or parallel.devices % several:
        return
    local = count(spec, "data_parallel_size_local")
    if local is None:
        local = max(1, parallel.devices // several // parallel.world_size)
    groups = parallel.data // local if 0 < local <= parallel.data else 1
    is_outside = flag(spec, _EXTERNAL) or count(spec, "data_parallel_rank") is not None
    if several % groups and not is_outside:
        message = f"nnodes {several} is not divisible by the {groups} groups of copies"
        yield "serve.nnodes", f"{message} (DP {parallel.data}, {local} on a node)"


def local_copies(spec: Spec) -> Broken:
    local, copies = count(spec, "data_parallel_size_local"), spec.parallel.data
    if local is not None and local > copies:
        message = f"data_parallel_size_local {local} is greater than DP {copies}"
        yield "serve.data_parallel_size_local", message


def balancers(spec: Spec) -> Broken:
    """Who spreads requests over the data-parallel copies: vLLM, or somebody outside who starts
    each copy with its rank.
    """
    rank, local = count(spec, "data_parallel_rank"), count(spec, "data_parallel_size_local")
    hybrid, is_outside = flag(spec, _HYBRID), bool(flag(spec, _EXTERNAL))
    several, copies = count(spec, "nnodes") or 1, spec.parallel.data
    is_inferred = several > 1 and copies > 1 and several % copies == 0
    if hybrid and is_outside:
        yield f"serve.{_HYBRID}", f"{_HYBRID} and {_EXTERNAL} exclude each other"
    if hybrid and not is_outside and rank is None and local is None and several <= 1:
        yield f"serve.{_HYBRID}", f"{_HYBRID} needs a data_parallel_size_local"
    if is_outside and rank is None and not is_inferred:
        yield f"serve.{_EXTERNAL}", f"{_EXTERNAL} needs a data_parallel_rank"
    if (is_outside or rank is not None) and local not in {None, 1}:
        message = f"data_parallel_size_local {local}: a copy with a data_parallel_rank is alone"
        yield "serve.data_parallel_size_local", message


def copy_rank(spec: Spec) -> Broken:
    """Ranks and load balancers are for several copies."""
    rank, copies = count(spec, "data_parallel_rank"), spec.parallel.data
    if rank is not None and (rank >= copies or copies == 1):
        yield "serve.data_parallel_rank", f"data_parallel_rank {rank} is not for DP {copies}"
    for name in (_EXTERNAL, _HYBRID):
        if copies == 1 and flag(spec, name):
            yield f"serve.{name}", f"{name} is for more than one copy, found DP 1"


def executor(spec: Spec) -> Broken:
    several = (count(spec, "nnodes") or 1) > 1
    if several and flag(spec, "distributed_executor_backend") == "ray":
        message = "nnodes is for distributed_executor_backend mp, found ray"
        yield "serve.distributed_executor_backend", message


def copies_backend(spec: Spec) -> Broken:
    several = (count(spec, "nnodes") or 1) > 1
    backend = flag(spec, "data_parallel_backend") or "mp"
    if several and backend != "mp":
        message = f"nnodes is for data_parallel_backend mp, found {backend}"
        yield "serve.data_parallel_backend", message


def _is_one_node(spec: Spec) -> bool:
    return (
        spec.hardware.device.platform == "cuda"
        and (count(spec, "nnodes") or 1) == 1
        and (flag(spec, "distributed_executor_backend") or "mp") == "mp"
        and (flag(spec, "data_parallel_backend") or "mp") == "mp"
    )


RULES = (
    (devices, "__post_init__"),
    (node_devices, "__post_init__"),
    (node_copies, "init_device"),
    (nodes, "create_engine_config"),
    (node_groups, "nnodes_within_dp"),
    (local_copies, "_validate_parallel_config"),
    (balancers, "create_engine_config"),
    (copy_rank, "_validate_parallel_config"),
    (executor, "__post_init__"),
    (copies_backend, "create_engine_config"),
)
