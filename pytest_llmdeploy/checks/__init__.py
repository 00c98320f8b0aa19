"""The checks: one file for each family, every check a function under `@check`."""

from pytest_llmdeploy.checks.decorator import Check, check, check_of
from pytest_llmdeploy.checks.expect import Expect, NotPassed
from pytest_llmdeploy.checks.registry import DuplicateCheckError, Registry
from pytest_llmdeploy.checks.requirements import Requirement, requirements

__all__ = [
    "Check",
    "DuplicateCheckError",
    "Expect",
    "NotPassed",
    "Registry",
    "Requirement",
    "check",
    "check_of",
    "requirements",
]
