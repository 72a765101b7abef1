"""The fleet: how a device comes in (token, request, certificate), what it is, what it says, and how it goes.

A report counts only when the device's own key signed it and its counter has grown. Tokens are `claims`, new
certificates for old ones `renewals`; what a device shall run is `desired`, checking what it says `reports`.
Called by the API (enrolment, inventory), `link` (reports, doorbells) and the rollout controller (queries).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import and_, delete, insert, select, update
from sqlalchemy.engine import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.broker import device_address
from cloud_hub.claims import Claims, check_profile
from cloud_hub.clock import Clock
from cloud_hub.clone_alerts import CloneAlerts
from cloud_hub.config import HubConfig
from cloud_hub.device_rows import Device, to_device
from cloud_hub.errors import BadRequest, HubError, NotFound
from cloud_hub.events import Events
from cloud_hub.intake.storing import Outcome, ReportStore
from cloud_hub.query import Moment, check_tags
from cloud_hub.renewals import Renewals
from cloud_hub.revocations import Revocations
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import assignments, devices, group_members, reported_modules
from cloud_hub.trust.ca import CertificateAuthority
from cloud_hub.trust.director import Director
from cloud_hub.trust.image import ImageRepository
from cloud_hub.trust.issuer import Issuer
from firmware_profiles.profile import DeviceProfile
from modules.enrolment import ClaimToken, EnrollAnswer, EnrollRequest
from modules.errors import ModuleError
from modules.messages import DeviceReport, SignedReport

BEHIND_PAGE: Final = 1000
_log = logging.getLogger(__name__)


class Devices:
    """Every change is one transaction with its event."""

    def __init__(
        self,
        config: HubConfig,
        store: Store,
        events: Events,
        ca: CertificateAuthority,
        issuer: Issuer,
        claims: Claims,
        revocations: Revocations,
        renewals: Renewals,
        image: ImageRepository,
        director: Director,
        catalog: Mapping[str, DeviceProfile],
        clock: Clock,
        clones: CloneAlerts,
    ) -> None:
        self._config = config
        self._store = store
        self._events = events
        self._ca = ca
        self._issuer = issuer
        self._claims = claims
        self._revocations = revocations
        self._renewals = renewals
        self._image = image
        self._director = director
        self._catalog = catalog
        self._clock = clock
        self._clones = clones
        self._reports = ReportStore(store, events, renewals, clones, clock)

    async def enroll(self, request: EnrollRequest, actor: str) -> EnrollAnswer:
        """Takes the token and gives a certificate: both or neither.

        A device that is there already comes in again only with a token made for exactly its id; its old certificates
        are revoked then. Raises BadRequest `enrolment-invalid`, Unauthorized `token-...`, NotFound
        `profile-not-found`, Conflict `device-exists`, Unprocessable `csr-invalid`, and as `Issuer.issue`.
        """
        try:
            token = ClaimToken.parse(request.token)
        except ModuleError as error:
            raise BadRequest(error.key, f"{error}; the device was not enrolled") from error
        check_profile(self._catalog, request.profile)
        # Before anything is signed: whoever has no token costs nothing, and gets nothing.
        await self._claims.check(token, request.device, request.profile)
        try:
            certificate = await self._issuer.issue(request.csr, request.device, self._clock())
        except HubError as error:
            await self._claims.note_refusal(token, request.device, error)
            raise
        again = await self._enrolled(request, token, certificate, actor)
        if again:
            await self._publish_revocations(request.device)
        address = device_address(self._config)
        return EnrollAnswer(
            device=request.device,
            certificate=certificate,
            server_ca=self._ca.server_ca_pem,
            mqtt_host=address.host,
            mqtt_port=address.port,
            image_root=await self._image.root_json(),
            director_root=await self._director.root_json(),
            device_ca=self._issuer.authorities,
        )

    async def _enrolled(self, request: EnrollRequest, token: ClaimToken, certificate: str, actor: str) -> bool:
        """One transaction; whether the device was there before."""
        async with self._store.write() as connection:
            taken = await self._claims.take(connection, token, request.device, request.profile)
            again = await self._revoke_certificates(connection, request.device, "enrolled-again")
            await self._admit(connection, request, certificate, taken.tags, again)
            details = {"profile": request.profile, "again": again, "token": taken.id}
            await self._events.record(connection, "device.enrolled", actor, request.device, **details)
        return again

    async def get(self, device: str) -> Device:
        """Raises NotFound `device-not-found`."""
        async with self._store.read() as connection:
            return self._device(await _row(connection, device))

    async def set_tags(self, device: str, tags: Mapping[str, str], actor: str) -> Device:
        """Puts `tags` in the place of all the device's tags."""
        check_tags(tags)
        async with self._store.write() as connection:
            before = dict((await _row(connection, device)).tags)
            await connection.execute(update(devices).where(devices.c.id == device).values(tags=dict(tags)))
            await self._events.record(connection, "device.tagged", actor, device, before=before, after=dict(tags))
            return self._device(await _row(connection, device))

    async def retire(self, device: str, actor: str) -> None:
        """Revokes the certificates, takes every module away and answers the device no more. Again is harmless."""
        if await self.shut_out(device, actor, "device.retired"):
            await self._publish_revocations(device)

    async def shut_out(self, device: str, actor: str, kind: str) -> bool:
        """What the database has to say about the end of a device; whether it was new. Publishing is the caller's."""
        async with self._store.write() as connection:
            row = await _row(connection, device)
            await self._revoke_certificates(connection, device, "retired")
            if row.retired_at is not None:
                return False
            for table in (assignments, reported_modules, group_members):
                await connection.execute(delete(table).where(table.c.device == device))
            change = update(devices).where(devices.c.id == device)
            await connection.execute(change.values(retired_at=self._clock(), readmit_until=None))
            await self._events.record(connection, kind, actor, device)
        return True

    async def accept_report(self, device: str, signed: SignedReport) -> DeviceReport | None:
        """Stores the report when it is the device's own and newer than the last; None when it is not newer.

        The broker hands over the last report again at each connection, so an old one is nothing unusual. Raises
        NotFound `device-not-found`, Conflict `device-retired` `report-signature`, `report-device` or
        `report-invalid`.
        """
        (outcome,) = await self.take_reports([(device, signed)])
        if isinstance(outcome, HubError):
            raise outcome
        return outcome

    async def accept_reports(self, batch: Sequence[tuple[str, SignedReport]]) -> Sequence[tuple[str, DeviceReport]]:
        """As `accept_report`, for many in one transaction: those that count. The others are left out."""
        outcomes = await self.take_reports(batch)
        named = zip((device for device, _ in batch), outcomes, strict=True)
        return [(device, outcome) for device, outcome in named if isinstance(outcome, DeviceReport)]

    async def take_reports(self, batch: Sequence[tuple[str, SignedReport]]) -> Sequence[Outcome]:
        """What became of each: the report when it counts, what `accept_report` would raise, or None."""
        return await self._reports.take(batch)

    async def behind(self, after: str = "", limit: int = BEHIND_PAGE) -> tuple[tuple[str, int], ...]:
        """Devices whose last report knows less than their director, each with the director's version.

        A page in the order of their ids, of those behind the id `after`. An index holds just these devices.
        """
        lagging = and_(devices.c.retired_at.is_(None), devices.c.known_version < devices.c.director_version)
        query = select(devices.c.id, devices.c.director_version).where(lagging, devices.c.id > after)
        async with self._store.read() as connection:
            rows = await connection.execute(query.order_by(devices.c.id).limit(limit))
            return tuple((row.id, row.director_version) for row in rows)

    async def _revoke_certificates(self, connection: AsyncConnection, device: str, reason: str) -> bool:
        """All that the device has, so that a second one with its key is out too; whether there is such a device."""
        query = select(devices.c.certificate, devices.c.next_certificate).where(devices.c.id == device)
        row = (await connection.execute(query)).one_or_none()
        for certificate in () if row is None else row:
            if certificate is not None:
                await self._revocations.add(connection, certificate, device, reason)
        await self._clones.resolve(connection, device)
        return row is not None

    async def _publish_revocations(self, device: str) -> None:
        """A failure changes nothing that was decided: the list is tried again with every tick."""
        try:
            await self._revocations.publish()
        except (HubError, OSError) as error:
            _log.error("%s: its old certificate is revoked, the broker does not know it yet: %s", device, error)

    async def _admit(
        self,
        connection: AsyncConnection,
        request: EnrollRequest,
        certificate: str,
        tags: Mapping[str, str],
        again: bool,
    ) -> None:
        """A new row, or the old one with the new certificate. Director versions go on; reports begin anew."""
        fresh: dict[str, object] = {"profile": request.profile, "certificate": certificate, "next_certificate": None}
        fresh |= {"issued_at": self._clock(), "readmit_until": None, "boots": []}
        fresh |= {"report_counter": 0, "report": None, "known_version": 0, "present": None}
        if not again:
            values = {"id": request.device, "tags": dict(tags), "created_at": self._clock(), "director_version": 1}
            await connection.execute(insert(devices).values(**values, **fresh))
            return
        old = await _row(connection, request.device)
        await connection.execute(delete(reported_modules).where(reported_modules.c.device == request.device))
        if old.profile != request.profile:
            await connection.execute(delete(assignments).where(assignments.c.device == request.device))
        values = {"tags": {**old.tags, **tags}, "retired_at": None, "director_version": old.director_version + 1}
        change = update(devices).where(devices.c.id == request.device)
        await connection.execute(change.values(**values, **fresh, report_at=None))

    def _device(self, row: Row[Any]) -> Device:
        return to_device(row, Moment(self._clock(), self._config.offline_after_s))


async def _row(connection: AsyncConnection, device: str) -> Row[Any]:
    row = (await connection.execute(select(devices).where(devices.c.id == device))).one_or_none()
    if row is None:
        raise NotFound("device-not-found", f"no device {device[:63]}", device=device[:63])
    return row
