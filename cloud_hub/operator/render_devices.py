"""Claim tokens, exports and the end of a device, as tables for people. Called by the command line."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from cloud_hub.claims import KnownToken
from cloud_hub.expulsion import Expelled
from cloud_hub.operator.offline import Exported
from cloud_hub.operator.render import pairs, table, when
from cloud_hub.words import counted


def tokens(found: Sequence[KnownToken]) -> RenderableType:
    rows = [
        (
            token.id,
            token.state,
            token.device or "any",
            token.profile or "any",
            f"{token.used} of {token.uses}",
            when(token.expires_at),
            pairs(token.tags),
            token.created_by,
        )
        for token in found
    ]
    headers = ("token", "state", "device", "profile", "used", "until", "tags", "made by")
    return table(headers, rows, "no claim tokens")


def expelled(found: Expelled) -> RenderableType:
    rows = [(step.name, "proven" if step.done else "NOT PROVEN", step.text) for step in found.steps]
    end = f"{found.device} is out" if found.out else f"{found.device} is NOT proven to be out; mend it and ask again"
    return Group(table(("step", "", "seen"), rows, ""), Text(end))


def exported(found: Exported) -> RenderableType:
    size = f"{counted(found.files, 'file')}, {found.bytes} bytes ({found.fetched_bytes} fetched now)"
    rows = [
        ("devices", ", ".join(found.devices)),
        ("modules", str(found.modules)),
        ("files", size),
        ("install until", when(found.valid_until)),
        ("verified", "signatures, manifests and every file, read back from the folder"),
    ]
    return table((found.folder, ""), rows, "")
