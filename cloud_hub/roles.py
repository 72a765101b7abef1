"""Who may do what to which devices: roles, scopes, and the principal behind a request. Pure.

A route names the role that it needs (`api.route`); `access` holds what is shown and changed against the scope.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import Final, Literal

from cloud_hub.errors import BadRequest
from cloud_hub.query import DeviceFacts, Query, parse

MAX_SCOPE_CHARS: Final = 4000
_OR: Final = re.compile(r"\s+or\s+")


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
    """The devices that somebody may see and act on: those of any of the queries. No query: every device."""

    queries: tuple[Query, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Scope:
        """Tag queries joined by ` or `; empty, or with `all` among them: every device. Raises `scope-invalid`."""
        if len(text) > MAX_SCOPE_CHARS:
            raise BadRequest("scope-invalid", f"scope: expected at most {MAX_SCOPE_CHARS} characters, got {len(text)}")
        if not text.strip():
            return cls()
        try:
            queries = tuple(parse(part) for part in _OR.split(text.strip()))
        except BadRequest as error:
            raise BadRequest("scope-invalid", f"scope: {error.message}") from error
        return cls(queries if all(query.terms for query in queries) else ())

    @property
    def everything(self) -> bool:
        return not self.queries

    def matches(self, device: DeviceFacts) -> bool:
        return self.everything or any(query.matches(device) for query in self.queries)

    def names(self, name: str) -> bool:
        """Whether some condition is on `name` (a tag, id or profile)."""
        return any(term.name == name for query in self.queries for term in query.terms)

    def excludes(self, name: str) -> bool:
        """Whether some condition is that `name` is something else."""
        return any(term.name == name and not term.equal for query in self.queries for term in query.terms)

    def __str__(self) -> str:
        return " or ".join(query.text for query in self.queries)


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
