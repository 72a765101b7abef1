"""The table `[api]` of `hub.toml`: bounds on what the API keeps and does at a time."""

from __future__ import annotations

import msgspec


class ApiSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The API's bounds.

    Answers to requests with an Idempotency-Key are kept for 24 hours, those of the last `kept_requests` of them. With
    `require_if_match` the changes of what has an ETag must name it. At most `listeners` follow the stream of events at
    a time, `listeners_each` of one principal; one that takes nothing for `listener_write_s` is let go. At most
    `operations` long operations are worked on at a time and `operations_waiting` wait; what became of them is kept for
    `operation_hours`.
    """

    kept_requests: int = 20_000
    require_if_match: bool = False
    listeners: int = 200
    listeners_each: int = 20
    listener_write_s: float = 30.0
    operations: int = 2
    operations_waiting: int = 50
    operation_hours: float = 24.0

    def __post_init__(self) -> None:
        for name in ("kept_requests", "listeners", "listeners_each", "operations", "operations_waiting"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("listener_write_s", "operation_hours"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected a number above 0, got {getattr(self, name)}")
