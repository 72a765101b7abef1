"""What a fleet file changes, for a terminal: as a diff. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from cloud_hub.operator.applying.steps import Change
from cloud_hub.words import counted

_STYLE = {"create": "green", "change": "yellow", "remove": "red", "roll out": "cyan"}


def changes(found: Sequence[Change]) -> RenderableType:
    if not found:
        return Text("nothing differs: the hub is as the file says")
    return Group(
        *(line for change in found for line in _lines(change)), Text(counted(len(found), "change"), style="bold")
    )


def _lines(change: Change) -> list[Text]:
    shown = [
        Text.assemble((f"{change.act} ", f"bold {_STYLE[change.act]}"), (f"{change.kind} ", "bold"), change.subject)
    ]
    for line in change.lines:
        if line.before:
            shown.append(Text(f"  - {line.name}: {line.before}", "red"))
        if line.after:
            shown.append(Text(f"  + {line.name}: {line.after}", "green"))
    return shown
