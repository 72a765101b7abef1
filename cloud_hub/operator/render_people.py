"""Users, tokens and the audit trail's check as tables for a terminal. Pure; as `render`."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from cloud_hub.api.people import WhoAmI
from cloud_hub.chain import Verdict
from cloud_hub.operator.render import card, table, when
from cloud_hub.people import ApiToken, User
from cloud_hub.words import counted

ALL = "every device"


def who_am_i(found: WhoAmI) -> RenderableType:
    return card(
        {
            "name": found.name,
            "kind": found.kind,
            "role": found.role,
            "scope": found.scope or ALL,
            "until": when(found.expires_at) if found.expires_at else "no end",
        }
    )


def users(found: Sequence[User]) -> RenderableType:
    rows = [
        (u.name, u.role, u.scope or ALL, when(u.password_at), when(u.disabled_at) if u.disabled_at else "")
        for u in found
    ]
    return table(("user", "role", "scope", "password set", "disabled"), rows, "no users")


def tokens(found: Sequence[ApiToken]) -> RenderableType:
    rows = [
        (t.id, t.name, t.role, t.scope or ALL, when(t.expires_at) if t.expires_at else "never", when(t.used_at))
        for t in found
    ]
    return table(("id", "name", "role", "scope", "expires", "last used"), rows, "no service tokens")


def verdict(found: Verdict) -> RenderableType:
    """The head as one word to keep; every break in a line of its own."""
    lines = [Text(f"event {one.id}: {one.why}", style="red", overflow="fold") for one in found.breaks]
    said = "the chain holds" if found.holds else "the chain is broken"
    end = Text(f"{counted(found.events, 'event')}, {said}; head {found.head or 'none'}", overflow="fold")
    return Group(*lines, end)
