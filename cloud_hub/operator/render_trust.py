"""Trust as tables for a terminal: keys, roles, proposals, what became of a signature. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cloud_hub.api.trust import TrustStatus
from cloud_hub.operator.signing import KeyFile
from cloud_hub.trust.ceremony import Outcome, Pending

KEYID_CHARS = 12  # enough to tell keys apart, and what `--keep` takes


def keys(found: Sequence[KeyFile]) -> RenderableType:
    table = _table("FILE", "KEY ID", "SCHEME", "HALF", "FOR (BY ITS NAME)")
    for key in found:
        half = ("private, encrypted" if key.encrypted else "private, NOT encrypted") if key.private else "public"
        table.add_row(key.file, key.keyid, key.scheme, half, key.role)
    return table


def status(found: TrustStatus) -> RenderableType:
    table = _table("REPOSITORY", "ROLE", "VERSION", "EXPIRES", "KEYS", "SIGNED BY")
    for role in found.roles:
        ids = " ".join(key.keyid[:KEYID_CHARS] for key in role.keys)
        expires = _day(role.expires_at) if role.expires_at is not None else "-"
        version = str(role.version) if role.version is not None else "-"
        who = "the hub" if role.online else "its key holders"
        table.add_row(role.repository, role.role, version, expires, f"{role.threshold} of {len(role.keys)}: {ids}", who)
    return Group(table, *(Text(f"warning: {warning}", style="yellow") for warning in found.warnings))


def pending(found: Sequence[Pending]) -> RenderableType:
    table = _table("REPOSITORY", "ROLE", "VERSION", "SIGNATURES", "SINCE", "BY")
    for one in found:
        table.add_row(
            one.repository, one.role, str(one.version), str(one.signatures), _day(one.submitted_at), one.submitted_by
        )
    return table


def outcomes(found: Sequence[Outcome]) -> RenderableType:
    return Group(*(_outcome(one) for one in found))


def _outcome(one: Outcome) -> RenderableType:
    what = f"{one.repository} {one.role} version {one.version}"
    if one.published:
        return Group(Text(f"{what}: published"), *(Text(f"  {note}") for note in one.notes))
    return Text(
        f"{what}: signed by {len(one.signed_by)} of {one.threshold} keys that it needs; "
        "waits for the others on the hub, nothing is published yet"
    )


def _day(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d}"


def _table(*columns: str) -> Table:
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column.lower(), overflow="fold")
    return made
