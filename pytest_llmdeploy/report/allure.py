"""What allure-pytest shows of a row beyond what it knows of every test."""

from __future__ import annotations

import allure

from pytest_llmdeploy.evidence import Row


def tell(row: Row) -> None:
    """Names the running test after its item, with what was required and found as parameters."""
    allure.dynamic.title(row.item)
    if row.requirement:
        allure.dynamic.parameter("required", row.requirement)
    allure.dynamic.parameter("result", row.result)
