"""What follows from a spec without running anything: ranks, bytes, feasibility, predicates."""

from pytest_llmdeploy.plan import requirements
from pytest_llmdeploy.plan.kv_cache import KvCache
from pytest_llmdeploy.plan.memory import resolved_dtype
from pytest_llmdeploy.plan.model import Plan, Rank, Violation
from pytest_llmdeploy.plan.planner import plan
from pytest_llmdeploy.plan.shape import ModelShape, ShapeUnknownError, shape_from_config

__all__ = [
    "KvCache",
    "ModelShape",
    "Plan",
    "Rank",
    "ShapeUnknownError",
    "Violation",
    "plan",
    "requirements",
    "resolved_dtype",
    "shape_from_config",
]
