"""Sites and what came of their packs, for a terminal. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import RenderableType
from rich.text import Text

from cloud_hub.operator.render import table, when
from cloud_hub.sites.book import Site
from cloud_hub.sites.merging import Merged
from cloud_hub.sites.registry import CarriedDevice
from cloud_hub.words import counted


def sites(found: Sequence[Site]) -> RenderableType:
    rows = [
        (one.name, one.fingerprint[:16], str(one.devices), when(one.made_at), when(one.merged_at), when(one.added_at))
        for one in found
    ]
    return table(("site", "key", "devices", "packed", "merged", "added"), rows, "no other hub counts here")


def devices(found: Sequence[CarriedDevice]) -> RenderableType:
    rows = [(one.id, one.profile, _modules(one), when(one.report_at), when(one.made_at)) for one in found]
    return table(("device", "profile", "modules", "reported", "packed"), rows, "no pack of this site has been merged")


def merged(found: Merged) -> RenderableType:
    line = Text(
        f"{found.site}: pack of {when(found.made_at)}, {counted(found.devices, 'device')}, {found.entries} entries"
    )
    if found.held:
        line.append(f"; {found.held} are held back: the next pack brings them", "yellow")
    if found.unknown:
        names = ", ".join(found.unknown)
        line.append(f"\nnot here: {names}; register and build them here, or merge with --skip-unknown", "yellow")
    return line


def _modules(device: CarriedDevice) -> str:
    return ", ".join(f"{one.name}:{one.version}" for one in (device.report.modules if device.report else ()))
