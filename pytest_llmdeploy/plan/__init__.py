"""What follows from a spec without running anything: ranks, bytes, feasibility, predicates."""

from pytest_llmdeploy.plan import requirements
from pytest_llmdeploy.plan.memory import block_size, resolved_dtype
from pytest_llmdeploy.plan.model import KvCache, Plan, Rank, Violation
from pytest_llmdeploy.plan.planner import plan
from pytest_llmdeploy.plan.shape import ModelShape, ShapeUnknownError, shape_from_config

__all__ = [
    "KvCache",
    "ModelShape",
    "Plan",
    "Rank",
    "ShapeUnknownError",
    "Violation",
    "block_size",
    "plan",
    "requirements",
    "resolved_dtype",
    "shape_from_config",
]
