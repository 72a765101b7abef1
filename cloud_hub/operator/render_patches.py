"""Patches as a table for a terminal. Pure: from values to renderables; `cli.modules` prints them."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from cloud_hub.operator.render import size, table
from cloud_hub.patches.queue import Patch, PatchState


def patches(found: Sequence[Patch]) -> RenderableType:
    rows = [
        (
            f"{p.module}:{p.version}",
            p.path,
            f"{p.base_version} to {p.version}",
            f"{p.devices} of {p.holders}",
            str(p.state),
            _cost(p),
            _remark(p),
        )
        for p in found
    ]
    headers = ("module", "file", "versions", "devices", "state", "size", "remark")
    return Group(table(headers, rows, "no patches"), Text(_sum(found)))


def _cost(patch: Patch) -> str:
    if patch.size is None:
        return f"- of {size(patch.target_size)}"
    return f"{size(patch.size)} of {size(patch.target_size)}"


def _remark(patch: Patch) -> str:
    if patch.size is not None:
        return f"saves {1 - patch.size / max(1, patch.target_size):.0%}"
    return f"{patch.reason} (attempt {patch.attempts})" if patch.reason else ""


def _sum(found: Sequence[Patch]) -> str:
    built = [patch for patch in found if patch.state is PatchState.BUILT]
    waiting = sum(patch.state in (PatchState.QUEUED, PatchState.BUILDING) for patch in found)
    stored = sum(patch.size or 0 for patch in built)
    saved = sum(patch.devices * (patch.target_size - (patch.size or 0)) for patch in built)
    return f"{len(built)} built ({size(stored)}), {waiting} waiting; devices on their way save {size(saved)}"
