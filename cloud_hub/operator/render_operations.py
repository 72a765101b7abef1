"""Long operations as tables for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cloud_hub.operator.render import table, when

if TYPE_CHECKING:
    from rich.console import RenderableType

    from cloud_hub.operations.book import Operation


def operations(found: Sequence[Operation]) -> RenderableType:
    rows = [(one.id, str(one.state), one.request, one.actor, when(one.created_at), far(one)) for one in found]
    return table(("id", "state", "request", "by", "begun", "at"), rows, "no long operations")


def operation(found: Operation) -> RenderableType:
    return operations([found])


def far(found: Operation) -> str:
    """What it is at, in a few words; of one that has ended only how far it came."""
    doing = "" if found.state.ended else found.doing
    counted = f" {found.done:,}" if found.done else ""
    return f"{doing}{counted}{f' of {found.total:,}' if found.total else ''}".strip()
