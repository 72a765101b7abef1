"""What a rollout would mean, for a terminal: groups, bytes, times, and who is left out. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from cloud_hub.operator.render import size, span, table, when
from cloud_hub.rollouts.preview import GroupPreview, LeftOut, Preview
from cloud_hub.rollouts.transfers import Transfer
from cloud_hub.words import counted

IDS_SHOWN = 3


def preview(found: Preview) -> RenderableType:
    parts: list[RenderableType] = [_headline(found), Text(""), _groups(found.groups)]
    if found.transfers:
        parts += [Text(""), _transfers(found.transfers)]
    if found.left_out:
        parts += [Text(""), _left_out(found.left_out)]
    notes = [Text("note: ", "bold yellow").append(note, "default") for note in (_source(found), *found.notes)]
    return Group(*parts, Text(""), *notes)


def _headline(found: Preview) -> Text:
    what = f"{found.module}:{found.version}" if found.version else f"the configuration of {found.module}"
    line = Text.assemble(
        ("dry run ", "bold"), f"{what} to {found.target}: ", (counted(found.devices, "device"), "bold cyan")
    )
    line.append(f", {size(found.bytes)} in all")
    if found.ends_at is not None:
        line.append(f", until about {when(found.ends_at)}")
    return line


def _groups(groups: Sequence[GroupPreview]) -> RenderableType:
    rows = [
        (
            str(group.index + 1),
            str(group.size),
            _few(group.devices, group.size),
            size(group.bytes),
            when(group.begins_at),
            when(group.done_at),
            group.approval,
        )
        for group in groups
    ]
    headers = ("group", "devices", "", "load", "begins about", "done about", "waits first")
    return table(headers, rows, "no devices")


def _transfers(found: Sequence[Transfer]) -> RenderableType:
    rows = [
        (
            one.profile,
            f"version {one.from_version}" if one.from_version else "nothing",
            str(one.devices),
            size(one.bytes) + (" with patches" if one.by_patch else ""),
            size(one.total),
            size(one.full),
        )
        for one in found
    ]
    return table(("profile", "has", "devices", "each loads", "all load", "all of it is"), rows, "")


def _left_out(found: Sequence[LeftOut]) -> RenderableType:
    rows = [(str(one.count), _few(one.devices, one.count), one.key, one.reason) for one in found]
    return table(("left out", "", "why", ""), rows, "")


def _source(found: Preview) -> str:
    known = found.durations
    if not known.executions:
        return f"times are the least: {known.basis} ({span(known.most_s)})"
    return (
        f"times are estimates from {counted(known.executions, 'execution')} of {known.basis}: "
        f"{span(known.typical_s)} as a rule, {span(known.most_s)} for 9 of 10"
    )


def _few(ids: Sequence[str], count: int) -> str:
    shown = ", ".join(ids[:IDS_SHOWN])
    return f"{shown}, ..." if count > IDS_SHOWN else shown
