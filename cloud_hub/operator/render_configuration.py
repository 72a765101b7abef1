"""Configurations as tables for a terminal. Pure; as `render`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from rich.console import Group, RenderableType
from rich.text import Text

from cloud_hub.configuration.book import Revision
from cloud_hub.configuration.configurations import ChangeResult
from cloud_hub.configuration.document import ConfigDifference, layers
from cloud_hub.configuration.viewing import DeviceConfiguration, ModuleConfiguration
from cloud_hub.operator.render import card, table, when
from cloud_hub.words import counted

NOTHING = "nothing"
SHORT_DIGEST = 12


def module(found: ModuleConfiguration) -> RenderableType:
    if found.stands is None and found.newest is None:
        return Text(f"{found.module} has no configuration", style="dim")
    parts: list[RenderableType] = []
    if found.stands is not None:
        parts.append(revision(found.stands))
    newest = found.newest
    if newest is not None and (found.stands is None or newest.revision != found.stands.revision):
        how = f"rollout {found.under_way} brings it" if found.under_way else "no rollout has brought it to its devices"
        parts += [Text(""), Text(f"revision {newest.revision} is newer; {how}", style="yellow"), revision(newest)]
    return Group(*parts)


def revision(found: Revision) -> RenderableType:
    facts = {
        "module": found.module,
        "revision": f"{found.revision}{', stands' if found.stands else ''}",
        "made": f"{when(found.created_at)} by {found.created_by}, from revision {found.base or NOTHING}",
        "comment": found.comment,
        "rollouts": ", ".join(found.rollouts),
    }
    rows = [(layer, name, value) for layer, part in layers(found.document) for name, value in _names(part)]
    return Group(card(facts), Text(""), table(("for", "name", "value"), rows, "it says nothing"))


def revisions(found: Sequence[Revision]) -> RenderableType:
    rows = [
        (str(one.revision), "stands" if one.stands else "", when(one.created_at), one.created_by, str(one.base or "-"),
         ", ".join(one.rollouts), one.comment)
        for one in found
    ]  # fmt: skip
    return table(("revision", "", "made", "by", "from", "rollouts", "comment"), rows, "no configuration")


def differences(found: Sequence[ConfigDifference]) -> RenderableType:
    rows = [(one.layer, one.path, _value(one.before), _value(one.after)) for one in found]
    return table(("for", "name", "before", "after"), rows, "nothing differs")


def changed(found: ChangeResult) -> RenderableType:
    if not found.differences and not found.rollout:
        return Text("nothing differs", style="dim")
    kept = f"revision {found.revision}: " if found.revision else "nothing was kept: "
    devices = counted(found.devices, "device")
    some = f", such as {', '.join(found.examples[:5])}" if found.examples else ""
    how = f"; rollout {found.rollout} brings it" if found.rollout else ""
    return Group(
        differences(found.differences), Text(f"{kept}{devices} would have another one{some}{how}", style="dim")
    )


def device(found: DeviceConfiguration) -> RenderableType:
    applied = {None: "it has not said", True: "yes", False: "not yet"}[found.applied]
    facts = {
        "device": found.device,
        "module": found.module,
        "revision": str(found.revision or NOTHING),
        "comes from": ", ".join(found.layers),
        "directed to": found.assigned_sha256[:SHORT_DIGEST] or NOTHING,
        "has it": applied,
    }
    directed = dict(_names(found.assigned or {}))
    rows = [(name, value, directed.get(name, NOTHING)) for name, value in _names(found.resolved)]
    rows += [(name, NOTHING, value) for name, value in directed.items() if name not in dict(_names(found.resolved))]
    return Group(card(facts), Text(""), table(("name", "by the revision", "directed to"), rows, "no configuration"))


def _names(part: Mapping[str, Any], before: str = "") -> list[tuple[str, str]]:
    """Dotted names with values as JSON, as `set` takes them."""
    found: list[tuple[str, str]] = []
    for name, value in sorted(part.items()):
        if isinstance(value, dict) and value:
            found += _names(value, f"{before}{name}.")
        else:
            found.append((f"{before}{name}", _value(value)))
    return found


def _value(value: object) -> str:
    return NOTHING if value is msgspec.UNSET else msgspec.json.encode(value).decode()
