"""Signatures and contents of reports, checked against what the hub knows of the devices. Pure.

Verifying takes most of a report's time (about 70 µs), and OpenSSL lets other threads run meanwhile: `storing` calls
this in a thread for groups. Parsed keys are not kept: to parse one is a tenth of a check, and each takes 2 KiB.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cloud_hub.errors import Conflict, HubError, NotFound, Unprocessable
from cloud_hub.reports import verify_report
from modules.messages import DeviceReport, SignedReport

MAX_VERSION: Final = 2**31 - 1  # what the columns hold
MAX_COUNTER: Final = 2**63 - 1
Arrived = tuple[str, SignedReport]  # on whose topic


@dataclass
class Standing:
    """A device's row, as far as reports change it. Reports of one group change it in turn."""

    id: str
    certificate: str
    next_certificate: str | None
    retired_at: float | None
    boots: list[str]
    report_counter: int
    report: bytes | None

    @property
    def known(self) -> tuple[str, ...]:
        """The certificates that it may sign with, PEM."""
        return (self.certificate, *((self.next_certificate,) if self.next_certificate else ()))


@dataclass(frozen=True)
class Checked:
    """What a report says, or why it counts for nothing. `signed_with` is the certificate (PEM) of its key.

    `again`: byte for byte the report that is stored; a broker hands it over at each connection.
    """

    report: DeviceReport | None = None
    signed_with: str = ""
    error: HubError | None = None
    again: bool = False


def check(arrived: Arrived, standing: Standing | None) -> Checked:
    """One report. Its errors are NotFound `device-not-found`, Conflict `device-retired` and as `verify_report`."""
    device, signed = arrived
    if standing is None:
        return Checked(error=NotFound("device-not-found", f"no device {device[:63]}", device=device[:63]))
    if standing.retired_at is not None:
        text = f"device {device} is retired; its report was dropped"
        return Checked(error=Conflict("device-retired", text, device=device))
    if standing.report is not None and signed.body == standing.report:
        return Checked(again=True)
    try:
        report, signer = verify_report(standing.known, device, signed)
    except HubError as error:
        return Checked(error=error)
    if not (0 <= report.director_version <= MAX_VERSION and abs(report.counter) <= MAX_COUNTER):
        text = f"report of {device}: counter or director version out of range; dropped"
        return Checked(error=Unprocessable("report-invalid", text, device=device))
    return Checked(report, standing.known[signer])


def check_all(batch: Sequence[Arrived], standings: Mapping[str, Standing]) -> list[Checked]:
    """Each by itself, in their order."""
    return [check(arrived, standings.get(arrived[0])) for arrived in batch]
