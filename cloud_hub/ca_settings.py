"""What an operator says about an authority of their own: the table `[ca]` of `hub.toml`. Used by `config`, `issuer`."""

from __future__ import annotations

from pathlib import Path

import msgspec


class CaSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Another authority for the devices' certificates; without a `command` the hub's own signs them.

    `command` gets the request (PEM) on standard input and the device id as its last argument, and prints the
    certificate. `crl_command` gets the revoked serial numbers, one in hexadecimal per line, and prints that authority's
    revocation list. Each has `timeout_s` seconds. `certificate` is the PEM file of the authority.
    """

    command: tuple[str, ...] = ()
    crl_command: tuple[str, ...] = ()
    certificate: str = ""
    timeout_s: float = 15.0

    def __post_init__(self) -> None:
        if not self.command:
            return
        if not self.crl_command or not self.certificate:
            raise ValueError("ca: expected crl_command and certificate beside the command")
        if not Path(self.certificate).is_file():
            raise ValueError(f"ca.certificate: expected a PEM file, got {self.certificate[:200]!r}")
        if not self.timeout_s > 0:
            raise ValueError(f"ca.timeout_s: expected a number above 0, got {self.timeout_s}")
