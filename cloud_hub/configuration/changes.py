"""What an operator changes of a module's configuration: one layer of it, or all of it. Pure.

Used by `configurations`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from cloud_hub.configuration.document import Document, Override, check
from cloud_hub.errors import BadRequest


class LayerChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """To the part for the fleet, or for the devices that match `target`, or for one `device`.

    `set` is merged into the part: objects name by name, where null is kept (it takes the name away from what the parts
    before say). `unset` are names, dotted for inner ones, that the part says nothing of any more. With `replace` the
    part is `set` and nothing else; with `remove` there is no such part any more.
    """

    target: str = ""
    device: str = ""
    set: dict[str, Any] = {}  # whatever a configuration holds
    unset: tuple[str, ...] = ()
    replace: bool = False
    remove: bool = False

    def __post_init__(self) -> None:
        if self.target and self.device:
            raise ValueError("expected a target or a device, not both")
        if self.remove and (self.set or self.unset or self.replace):
            raise ValueError("remove: expected nothing else beside it")


def changed(document: Document, change: LayerChange) -> Document:
    """The document after the change. Raises BadRequest `configuration-invalid` or `nothing-to-unset`."""
    if change.device:
        part = _part(document.own(change.device), change)
        others = {name: patch for name, patch in document.devices.items() if name != change.device}
        devices = others if part is None else {**others, change.device: part}
        return check(msgspec.structs.replace(document, devices=dict(sorted(devices.items()))))
    if change.target:
        return check(msgspec.structs.replace(document, targets=_targets(document, change)))
    return check(msgspec.structs.replace(document, fleet=_part(document.fleet, change) or {}))


def _targets(document: Document, change: LayerChange) -> tuple[Override, ...]:
    """An override stays where it is; a new one comes last."""
    known = {override.target: override.patch for override in document.targets}
    part = _part(known.get(change.target), change)
    known.pop(change.target, None) if part is None else known.update({change.target: part})
    return tuple(Override(target, patch) for target, patch in known.items())


def _part(before: Mapping[str, Any] | None, change: LayerChange) -> dict[str, Any] | None:
    """The layer's part after the change; None where there is none any more."""
    if change.remove:
        return None
    part = dict(change.set) if change.replace else _overlaid(before or {}, change.set)
    for name in change.unset:
        part = _without(part, name.split("."), name)
    return part or (None if before is None or change.unset else part)


def _overlaid(before: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """As a merge, but null is a value: a part may say that something is taken away."""
    merged = dict(before)
    for name, value in change.items():
        inner = merged.get(name)
        merged[name] = _overlaid(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged


def _without(part: Mapping[str, Any], path: list[str], name: str) -> dict[str, Any]:
    first, *rest = path
    if first not in part or (rest and not isinstance(part[first], dict)):
        text = f"{name}: this part of the configuration says nothing of it; nothing was changed"
        raise BadRequest("nothing-to-unset", text, name=name)
    kept = {key: value for key, value in part.items() if key != first}
    return kept if not rest else {**kept, first: _without(part[first], rest, name)}
