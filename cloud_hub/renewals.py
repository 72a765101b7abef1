"""New certificates for old ones, while the old one is good, and how a device comes back that was away for too long.

The key that the hub knows signs the wish for a certificate of a new key. Both are good until the new one has been seen
in use; then the old one is revoked. Asking again for the same key gives the same certificate, so an answer that is lost
costs nothing. Called by `link` (over MQTT), the API (over HTTPS, and readmission) and `devices` (seen in use).
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
from cryptography import x509
from sqlalchemy import select, update
from sqlalchemy.engine import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.clock import Clock
from cloud_hub.errors import Conflict, HubError, NotFound, Unauthorized, Unprocessable
from cloud_hub.events import Events
from cloud_hub.intake.checking import Standing
from cloud_hub.reports import signed_by
from cloud_hub.revocations import Revocations
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import devices
from cloud_hub.trust.ca import check_request
from cloud_hub.trust.issuer import Issuer
from modules.enrolment import RenewAnswer, RenewRequest
from modules.messages import Refusal, Renew, Renewed

MIN_READMISSION_S = 60.0
MAX_READMISSION_S = 30 * 86_400.0
# A device that asks for one key after the other would fill the revocation list.
LEAST_PAUSE_S = 3600.0
PAUSE_PART = 10  # of a certificate's life, where that is less


class Readmission(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """For so many seconds the device may renew a certificate that has expired, once."""

    for_s: float = 86_400.0

    def __post_init__(self) -> None:
        if not MIN_READMISSION_S <= self.for_s <= MAX_READMISSION_S:
            raise ValueError(
                f"for_s: expected {MIN_READMISSION_S:.0f} to {MAX_READMISSION_S:.0f} seconds, got {self.for_s}"
            )


class Renewals:
    """Every change is one transaction with its event."""

    def __init__(self, store: Store, events: Events, issuer: Issuer, revocations: Revocations, clock: Clock) -> None:
        self._store = store
        self._events = events
        self._issuer = issuer
        self._revocations = revocations
        self._clock = clock

    async def answer(self, device: str, renew: Renew) -> Renewed | Refusal:
        """To a wish that came over MQTT, where the broker vouches for the device; the signature is checked anyway."""
        if renew.request.device != device:
            return Refusal("bad-request", f"renewal on the topic of {device} for another device")
        try:
            answer = await self.renew(renew.request)
            return Renewed(answer.certificate, answer.device_ca)
        except HubError as error:
            return Refusal(error.key, error.message)

    async def renew(self, request: RenewRequest) -> RenewAnswer:
        """Raises Unauthorized `renewal-signature` (also for a device that nobody knows), Conflict `device-retired`,
        `certificate-expired`, `renewal-too-soon` or `renewal-lost`, Unprocessable `csr-invalid` or `csr-same-key`, and
        as `Issuer.issue`.
        """
        async with self._store.read() as connection:
            row = await self._asking(connection, request)
        now = self._clock()
        wanted = check_request(request.csr, request.device)
        if wanted == _load(row.certificate).public_key():
            raise Unprocessable("csr-same-key", f"renewal of {request.device}: expected a new key, got the old one")
        if row.next_certificate is not None:
            given = _load(row.next_certificate)
            if given.public_key() == wanted and given.not_valid_after_utc > datetime.fromtimestamp(now, UTC):
                return RenewAnswer(row.next_certificate, self._issuer.authorities)
        self._check_expired(row)
        self._check_pause(row, now)
        certificate = await self._issuer.issue(request.csr, request.device, now)
        async with self._store.write() as connection:
            current = await self._asking(connection, request)
            if (current.certificate, current.issued_at) != (row.certificate, row.issued_at):
                raise Conflict("renewal-lost", f"renewal of {request.device}: another came in between; ask again")
            self._check_expired(current)
            await self._keep(connection, current, certificate, now)
        return RenewAnswer(certificate, self._issuer.authorities)

    async def readmit(self, device: str, readmission: Readmission, actor: str) -> float:
        """Until when (seconds since the epoch) it may come back. Raises NotFound, Conflict `device-retired`."""
        until = self._clock() + readmission.for_s
        async with self._store.write() as connection:
            row = await _row(connection, device)
            if row is None:
                raise NotFound("device-not-found", f"no device {device[:63]}", device=device[:63])
            _check_retired(row)
            change = update(devices).where(devices.c.id == device)
            await connection.execute(change.values(readmit_until=until))
            await self._events.record(
                connection, "device.readmission-allowed", actor, device, for_s=readmission.for_s, until=until
            )
        return until

    async def seen(self, connection: AsyncConnection, row: Standing) -> None:
        """The device has used its new certificate: from now on that is its certificate, and the old one is revoked."""
        if row.next_certificate is None:
            raise ValueError(f"device {row.id} has no new certificate")
        await self._revocations.add(connection, row.certificate, row.id, "renewed")
        change = update(devices).where(devices.c.id == row.id)
        await connection.execute(change.values(certificate=row.next_certificate, next_certificate=None))
        until = _load(row.next_certificate).not_valid_after_utc.timestamp()
        await self._events.record(connection, "device.renewed", row.id, row.id, until=until)

    async def _asking(self, connection: AsyncConnection, request: RenewRequest) -> Row[Any]:
        """The device's row, when it may ask. Whoever it is not learns nothing about it."""
        row = await _row(connection, request.device)
        known = () if row is None else (row.certificate,)
        if row is None or signed_by(known, request.statement, request.signature) < 0:
            raise Unauthorized(
                "renewal-signature",
                f"renewal of {request.device}: not signed by the key of the certificate that this hub knows",
                device=request.device,
            )
        _check_retired(row)
        return row

    def _check_expired(self, row: Row[Any]) -> None:
        ended = self._clock() - _load(row.certificate).not_valid_after_utc.timestamp()
        if ended >= 0 and (row.readmit_until is None or row.readmit_until <= self._clock()):
            raise Conflict(
                "certificate-expired",
                f"the certificate of {row.id} ended {ended:.0f} s ago: expected an operator to let it back in "
                f"(mooring device readmit {row.id}), or a claim token for exactly this id",
                device=row.id,
            )

    def _check_pause(self, row: Row[Any], now: float) -> None:
        pause = min(LEAST_PAUSE_S, self._issuer.life.total_seconds() / PAUSE_PART)
        if now - row.issued_at < pause:
            raise Conflict(
                "renewal-too-soon",
                f"renewal of {row.id}: the last certificate was given out {now - row.issued_at:.0f} s ago; expected at "
                f"least {pause:.0f} s between two",
                device=row.id,
            )

    async def _keep(self, connection: AsyncConnection, row: Row[Any], certificate: str, now: float) -> None:
        if row.next_certificate is not None:
            await self._revocations.add(connection, row.next_certificate, row.id, "superseded")
        expired = _load(row.certificate).not_valid_after_utc.timestamp() <= now
        values = {"next_certificate": certificate, "issued_at": now}
        change = update(devices).where(devices.c.id == row.id)
        await connection.execute(change.values(**values, **({"readmit_until": None} if expired else {})))
        kind = "device.readmitted" if expired else "device.renewal"
        await self._events.record(
            connection, kind, row.id, row.id, until=_load(certificate).not_valid_after_utc.timestamp()
        )


def _check_retired(row: Row[Any]) -> None:
    if row.retired_at is not None:
        raise Conflict("device-retired", f"device {row.id} is retired: it gets no certificate", device=row.id)


async def _row(connection: AsyncConnection, device: str) -> Row[Any] | None:
    return (await connection.execute(select(devices).where(devices.c.id == device))).one_or_none()


def _load(pem: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem.encode())
