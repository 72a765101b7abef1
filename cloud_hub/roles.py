"""Who may do what to which devices: roles, scopes, and the principal behind a request. Pure.

A route names the role that it needs (`api.route`); `access` holds what is shown and changed against the scope.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final, Literal

from cloud_hub.errors import BadRequest
from cloud_hub.query import DeviceFacts, Query, parse

MAX_SCOPE_CHARS: Final = 4000


class Role(enum.StrEnum):
    """Whoever rolls modules out need not be who publishes them: operator and publisher do not include each other."""

    VIEWER = "viewer"  # reads
    OPERATOR = "operator"  # also changes devices and rollouts, and lets devices in
    PUBLISHER = "publisher"  # also registers, builds and signs models and modules
    ADMIN = "admin"  # everything, users, tokens and trust included

    def allows(self, needed: Role) -> bool:
        return self is needed or self is Role.ADMIN or needed is Role.VIEWER


@dataclass(frozen=True)
class Scope:
    """The devices that somebody may see and act on: those that the query means. No query: every device.

    Only id, profile and tags count, which no device can change by what it reports.
    """

    query: Query | None = None

    @classmethod
    def parse(cls, text: str) -> Scope:
        """A query in which every name but id and profile is one of a tag. Empty: every device.

        Raises BadRequest `scope-invalid`.
        """
        if not text.strip():
            return cls()
        try:
            query = parse(text, only_tags=True, most_chars=MAX_SCOPE_CHARS)
        except BadRequest as error:
            raise BadRequest("scope-invalid", f"scope: {error.message.removeprefix('query: ')}") from error
        return cls(None if query.everything else query)

    @property
    def everything(self) -> bool:
        return self.query is None

    def matches(self, device: DeviceFacts) -> bool:
        return self.query is None or self.query.matches(device)

    def names(self, name: str) -> bool:
        """Whether some condition is on `name`: id, profile, or tag.NAME."""
        return self.query is not None and self.query.names(name)

    def excludes(self, name: str) -> bool:
        """Whether some condition is that `name` is something else."""
        return self.query is not None and self.query.excludes(name)

    def __str__(self) -> str:
        return self.query.text if self.query is not None else ""


EVERYTHING: Final = Scope()


@dataclass(frozen=True)
class Principal:
    """Who asks: a service token, a user of this hub, or somebody whom an OpenID provider vouches for."""

    kind: Literal["token", "user", "oidc"]
    name: str
    role: Role
    scope: Scope = EVERYTHING
    token_id: str = ""  # of the service token or the session
    expires_at: float | None = None

    @property
    def actor(self) -> str:
        """How the audit trail names them. No service token can be named like a user."""
        return self.name if self.kind == "token" else f"{self.kind}:{self.name}"[:80]


def parse_role(text: str) -> Role:
    """Raises BadRequest `role-invalid`."""
    try:
        return Role(text)
    except ValueError as error:
        raise BadRequest("role-invalid", f"role: expected one of {', '.join(Role)}, got {text[:40]!r}") from error
