"""Rows survive the way through user_properties, and never carry Infinity or NaN."""

import json
import math
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_llmdeploy.evidence import Row, Status, judged

NUMBERS = st.none() | st.floats(allow_nan=False, allow_infinity=False)
ANY_NUMBERS = st.none() | st.floats()
JSON = st.recursive(
    NUMBERS | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
ANYTHING = st.recursive(
    st.floats() | st.sampled_from(Status) | st.text(),
    lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(st.integers(), inner),
    max_leaves=8,
)


def rows(numbers: st.SearchStrategy[Any], evidence: st.SearchStrategy[Any]) -> Any:
    """Rows with such figures and such evidence."""
    texts = dict.fromkeys(("check", "id", "family", "phase", "require", "item"), st.text())
    texts |= dict.fromkeys(("requirement", "result", "unit", "hint"), st.text())
    figures = dict.fromkeys(("measured", "bound", "limit", "margin"), numbers)
    mapping = st.dictionaries(st.text(), evidence)
    return st.builds(Row, status=st.sampled_from(Status), evidence=mapping, **texts, **figures)


@settings(deadline=None)
@given(rows(NUMBERS, JSON))
def test_a_row_comes_back_from_json_as_it_was(row: Row) -> None:
    """What a worker writes is what the controller reads."""
    assert Row.from_json(json.loads(json.dumps(row.to_json()))) == row


@settings(deadline=None)
@given(rows(ANY_NUMBERS, ANYTHING))
def test_a_row_is_strict_json_whatever_was_measured(row: Row) -> None:
    """Infinity and NaN become null at every depth, enums and tuples become plain."""
    json.dumps(row.to_json(), allow_nan=False)


def test_unbounded_is_null() -> None:
    """A figure that is unbounded is null, wherever it stands."""
    texts: dict[str, Any] = dict.fromkeys(("check", "id", "family", "phase", "require", "item"), "")
    row = Row(
        **texts,
        status=Status.FAIL,
        requirement="",
        result="",
        measured=math.inf,
        margin=-math.inf,
        evidence={"a": {"b": [math.nan, 1.5]}},
    )
    plain = row.to_json()
    assert plain["measured"] is plain["margin"] is None
    assert plain["evidence"] == {"a": {"b": [None, 1.5]}}


def test_only_a_pass_and_a_waiver_are_green() -> None:
    """Nothing that was not decided in favour counts as green."""
    assert {status for status in Status if status.is_green} == {Status.PASS, Status.WAIVED}


def test_what_is_not_decided_is_inconclusive() -> None:
    """A comparison without an answer is never a pass."""
    assert [judged(good, "", "").status for good in (True, False, None)] == [
        Status.PASS,
        Status.FAIL,
        Status.INCONCLUSIVE,
    ]
