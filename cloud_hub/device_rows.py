"""A device as the hub knows it, made of its row. Pure; used by `devices` and `fleet`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from cryptography import x509
from sqlalchemy.engine import Row

from cloud_hub.presence import is_online
from cloud_hub.query import DeviceFacts, Moment
from modules.messages import DeviceReport, decode_report


class Running(msgspec.Struct, frozen=True):
    """A module that the device reports, in few words. `role` is main, or candidate beside the version that serves."""

    module: str
    version: int
    state: str
    verified: bool
    role: str = "main"


class Device(msgspec.Struct, frozen=True):
    """One device as the hub knows it. Times are by the hub's clock; `report` is the last that counted.

    `renewing`: it has been given a new certificate, and has not been seen to use it. `seen_at` is when anything of it
    was last heard; `online_at` and `offline_at` when the broker last said that it is there, and that it is not.
    `differs`: it does not report what it shall run; lists fill this and `runs`. `report` is left out of brief lists.
    """

    id: str
    profile: str
    tags: dict[str, str]
    created_at: float
    retired_at: float | None
    online: bool
    director_version: int
    report_at: float | None
    report: DeviceReport | None
    certificate_until: float = 0.0
    renewing: bool = False
    agent_version: str = ""
    seen_at: float | None = None
    online_at: float | None = None
    offline_at: float | None = None
    differs: bool = False
    runs: tuple[Running, ...] = ()

    @property
    def facts(self) -> DeviceFacts:
        return DeviceFacts(self.id, self.profile, self.tags)


def to_device(row: Row[Any], moment: Moment, runs: Sequence[Running] = (), differs: bool = False) -> Device:
    """Of a row of `devices`; one that was read without its report has none."""
    known = row._asdict()
    report = known.get("report")
    return Device(
        id=row.id,
        profile=row.profile,
        tags=row.tags,
        created_at=row.created_at,
        retired_at=row.retired_at,
        online=is_online(known, moment.now, moment.offline_after_s),
        director_version=row.director_version,
        report_at=row.report_at,
        report=None if report is None else decode_report(report),
        certificate_until=x509.load_pem_x509_certificate(row.certificate.encode()).not_valid_after_utc.timestamp(),
        renewing=row.next_certificate is not None,
        agent_version=row.agent_version,
        seen_at=row.seen_at,
        online_at=row.online_at,
        offline_at=row.offline_at,
        differs=differs,
        runs=tuple(runs),
    )
