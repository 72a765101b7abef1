"""What an operator says about an OpenID provider: the table `[oidc]` of `hub.toml`. Used by `config` and `oidc`."""

from __future__ import annotations

import urllib.parse
from pathlib import Path
from typing import Final

import msgspec

from cloud_hub.errors import BadRequest
from cloud_hub.roles import Role, Scope

_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")


class Grant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a value of the claim gives: a `role`, and a `scope` (tag queries joined by ` or `; empty: every device)."""

    role: Role
    scope: str = ""


class OidcSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Login of people by an OpenID provider; without an `issuer` there is none.

    Tokens must be for the audience `client_id`. The first of the `grants` (a table by value of `claim`) that the
    person has counts; a person without any gets nothing. `name_claim` is how the audit trail names them. `ca` is a PEM
    file of the provider's authority where the system does not know it.
    """

    issuer: str = ""
    client_id: str = ""
    claim: str = "groups"
    name_claim: str = "email"
    ca: str = ""
    grants: dict[str, Grant] = {}

    def __post_init__(self) -> None:
        if not self.issuer:
            return
        check_url("issuer", self.issuer)
        if self.ca and not Path(self.ca).is_file():
            raise ValueError(f"oidc.ca: expected a PEM file, got {self.ca[:200]!r}")
        if not self.client_id or not self.grants:
            raise ValueError("oidc: expected client_id and at least one of grants beside the issuer")
        for value, grant in self.grants.items():
            try:
                scope = Scope.parse(grant.scope)
            except BadRequest as error:
                raise ValueError(f"oidc.grants.{value}: {error.message}") from error
            if grant.role is Role.ADMIN and not scope.everything:
                raise ValueError(f"oidc.grants.{value}: an admin has no scope; got {grant.scope[:80]!r}")


def check_url(name: str, url: str) -> None:
    """Raises ValueError unless the address is https, or http to this very machine."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "https" and parts.hostname:
        return
    if parts.scheme == "http" and parts.hostname in _LOOPBACK:
        return
    raise ValueError(f"{name}: expected an address with https, got {url[:200]!r}")
