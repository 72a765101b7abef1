"""Groups, saved queries and the counts of a fleet as tables. Called by `cli.groups` and `cli.devices`."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import RenderableType

from cloud_hub.groups.book import Group
from cloud_hub.groups.saved import SavedQuery
from cloud_hub.operator.render import table, when


def groups(found: Sequence[Group]) -> RenderableType:
    rows = [(one.name, str(one.devices), when(one.created_at), one.description) for one in found]
    return table(("group", "devices", "made", "description"), rows, "no groups")


def members(found: Sequence[str]) -> RenderableType:
    return table(("device",), [(one,) for one in found], "no devices in this group")


def queries(found: Sequence[SavedQuery]) -> RenderableType:
    rows = [(one.name, one.query, one.description, when(one.changed_at)) for one in found]
    return table(("query", "means", "description", "changed"), rows, "no saved queries")
