"""Which events one webhook wants, and which of them its scope lets it have. Pure.

An event without a severity passes whatever severity is asked for: only alerts have one. Where a webhook has a scope,
what is not known to be about its devices alone is kept from it. Called by `courier`; made from rows by `book`.
"""

from __future__ import annotations

from typing import Final

import msgspec

from cloud_hub.chain import Event
from cloud_hub.errors import BadRequest
from cloud_hub.events import Visible, of_devices, of_no_device
from cloud_hub.outward.cloud_events import module_of
from cloud_hub.outward.kinds import checked_patterns, chosen
from cloud_hub.roles import Scope

SEVERITIES: Final = ("warning", "critical")


class Choice(msgspec.Struct, frozen=True):
    """Empty texts mean any; `severity` is the least that is wanted; `scope` a tag query as a user's scope is."""

    kinds: tuple[str, ...] = ("*",)
    module: str = ""
    severity: str = ""
    scope: str = ""

    def checked(self) -> Choice:
        """Raises BadRequest `webhook-invalid` or `scope-invalid`."""
        try:
            checked_patterns(self.kinds)
        except ValueError as error:
            raise BadRequest("webhook-invalid", f"{error}; nothing was changed") from error
        if self.severity and self.severity not in SEVERITIES:
            expected = ", ".join(SEVERITIES)
            raise BadRequest("webhook-invalid", f"severity: expected one of {expected}, got {self.severity[:40]!r}")
        if len(self.module) > 63:
            raise BadRequest("webhook-invalid", f"module: expected at most 63 characters, got {len(self.module)}")
        Scope.parse(self.scope)
        return self


def wants(choice: Choice, event: Event, visible: Visible | None) -> bool:
    """`visible` is what the scope shows; None for everything."""
    if not chosen(event.kind, choice.kinds):
        return False
    if choice.module and module_of(event) != choice.module:
        return False
    severity = event.details.get("severity")
    if choice.severity and severity in SEVERITIES and SEVERITIES.index(severity) < SEVERITIES.index(choice.severity):
        return False
    return visible is None or _shown(event, visible)


def _shown(event: Event, visible: Visible) -> bool:
    if event.kind.startswith("alert."):
        kind, _, device = str(event.details.get("scope", "")).partition(":")
        return kind == "device" and device in visible.devices
    if of_devices(event.kind):
        return event.subject in visible.devices
    if event.kind.startswith("rollout."):
        return event.subject in visible.rollouts
    return of_no_device(event.kind)
