"""Groups, saved queries and the counts of a fleet as tables. Called by `cli.groups` and `cli.devices`."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group as RichGroup
from rich.console import RenderableType
from rich.text import Text

from cloud_hub.device_rows import Device
from cloud_hub.fleet import FleetSummary
from cloud_hub.groups.book import DeviceGroup
from cloud_hub.groups.saved import SavedQuery
from cloud_hub.operator.render import card, online, pairs, table, when


def devices(found: Sequence[Device]) -> RenderableType:
    rows = [
        (one.id, one.profile, _state(one), _runs(one), pairs(one.tags), one.agent_version, when(one.seen_at))
        for one in found
    ]
    headers = ("device", "profile", "state", "runs", "tags", "agent", "last seen")
    return table(headers, rows, "no devices")


def summary(found: FleetSummary) -> RenderableType:
    states = ("online", "offline", "never", "differs", "updating", "failed")
    counts = {"devices": str(found.devices), **{name: str(getattr(found, name)) for name in states}}
    profiles = [
        (one.profile, one.agent_version, *map(str, (one.devices, one.online, one.differs, one.updating, one.never)))
        for one in found.profiles
    ]
    modules = [
        (
            one.module + (" (candidate)" if one.role == "candidate" else ""),
            str(one.version),
            one.state + ("" if one.verified else " (not verified)"),
            str(one.devices),
        )
        for one in found.modules
    ]
    headers = ("profile", "agent", "devices", "online", "differs", "updating", "never reported")
    parts = [card(counts), Text(""), table(headers, profiles, "no devices")]
    return RichGroup(*parts, Text(""), table(("module", "version", "state", "devices"), modules, "no modules"))


def _state(device: Device) -> str:
    return online(device) + (" differs" if device.differs else "")


def _runs(device: Device) -> str:
    return ", ".join(
        f"{one.module}{'' if one.role == 'main' else ' (candidate)'}:{one.version} {one.state}"
        f"{'' if one.verified else ' (not verified)'}"
        for one in device.runs
    )


def groups(found: Sequence[DeviceGroup]) -> RenderableType:
    rows = [(one.name, str(one.devices), when(one.created_at), one.description) for one in found]
    return table(("group", "devices", "made", "description"), rows, "no groups")


def members(found: Sequence[str]) -> RenderableType:
    return table(("device",), [(one,) for one in found], "no devices in this group")


def queries(found: Sequence[SavedQuery]) -> RenderableType:
    rows = [(one.name, one.query, one.description, when(one.changed_at)) for one in found]
    return table(("query", "means", "description", "changed"), rows, "no saved queries")
