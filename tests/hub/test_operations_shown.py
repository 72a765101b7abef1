"""Long operations as a terminal shows them."""

from __future__ import annotations

import msgspec
import pytest

from cloud_hub.operations.book import Operation, OperationState
from cloud_hub.operator.render_operations import far

WRITING = Operation(
    "op-1", "export", "GET /samples/export", "user:ann", OperationState.RUNNING, "writing it down", 1000, 5000,
    1.0, None, None, 0, "",
)  # fmt: skip


def test_what_runs_says_what_it_is_at() -> None:
    assert far(WRITING) == "writing it down 1,000 of 5,000"


@pytest.mark.parametrize("state", [state for state in OperationState if state.ended])
def test_what_has_ended_is_at_nothing_any_more(state: OperationState) -> None:
    ended = msgspec.structs.replace(WRITING, state=state, ended_at=2.0)
    assert far(ended) == "1,000 of 5,000"
    assert far(msgspec.structs.replace(ended, done=0, total=0)) == ""
