"""Which certificates are no longer accepted, and the list of them that the broker reads.

The rows are the truth, the list is made of them: whole, with a short life, and anew long before it ends, because a list
that has expired locks out every device. A revocation that cannot wait publishes at once; the rest goes with the next
tick. Called by `devices`, `renewals`, `expulsion` (add, publish), `service` (tick) and `mooring-hub crl`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from sqlalchemy import delete, func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.clock import Clock
from cloud_hub.errors import HubError
from cloud_hub.events import Events
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import revocations
from cloud_hub.trust.ca import CertificateAuthority, Revoked
from cloud_hub.trust.issuer import Issuer

ROUTINE_S: Final = 5.0  # revocations that can wait are gathered for so long
REFRESH_BELOW: Final = 2 / 3  # of the list's life: it is written anew
ALARM_BELOW: Final = 1 / 2  # of the list's life: writing it anew has failed for a while
ALARM_EVERY_S: Final = 86_400.0
KEPT_S: Final = 86_400.0  # after its end a certificate stays on the list, because clocks differ
HUB: Final = "hub"
END: Final = b"-----END X509 CRL-----"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ListState:
    """When the list that lies on the disk ends (seconds since the epoch), and the part of its life that is left."""

    ends_at: float
    left: float


class Revocations:
    """`reload` has the broker read the list anew."""

    def __init__(
        self,
        store: Store,
        events: Events,
        ca: CertificateAuthority,
        issuer: Issuer,
        crl: Path,
        life: timedelta,
        clock: Clock,
        reload: Callable[[], None],
        shared: bool = False,
    ) -> None:
        self._store, self._events, self._ca, self._issuer = store, events, ca, issuer
        self._crl, self._life, self._clock, self._reload = crl, life, clock, reload
        self._shared = shared  # with other replicas, each of which writes a list of its own
        self._listed = -1  # how many stand on the list that was written last
        self._writing = asyncio.Lock()
        # What was added before the hub stopped may not have been published: the first tick does it.
        self._waiting = True
        self._tried_at = float("-inf")
        self._alarm_at = float("-inf")

    async def add(self, connection: AsyncConnection, certificate_pem: str, device: str, reason: str) -> None:
        """In the transaction of the change; to be published after it. Again is harmless."""
        certificate = x509.load_pem_x509_certificate(certificate_pem.encode())
        row = {
            "serial": f"{certificate.serial_number:x}",
            "device": device,
            "reason": reason,
            "external": certificate.issuer != self._ca.device_ca.subject,
            "revoked_at": self._clock(),
            "ends_at": certificate.not_valid_after_utc.timestamp(),
        }
        known = select(revocations.c.serial).where(revocations.c.serial == row["serial"])
        if (await connection.execute(known)).one_or_none() is None:
            await connection.execute(insert(revocations).values(row))
            self._waiting = True

    async def publish(self, more: Iterable[Revoked] = (), life: timedelta | None = None) -> int:
        """Writes the list and has the broker read it; how many certificates stand on it.

        `more` are lines for this time only. Raises Unavailable when the operator's authority does not answer, OSError.
        """
        async with self._writing:
            self._waiting = False
            try:
                return await self._publish(tuple(more), life or self._life)
            except BaseException:
                self._waiting = True
                raise

    async def tick(self) -> None:
        """What waits is published, the list is kept fresh, and an alarm is raised when that does not succeed."""
        now = self._clock()
        state = read_list(self._crl, now)
        stale = state is None or state.left < REFRESH_BELOW
        if (self._waiting or stale or self._shared) and now - self._tried_at >= ROUTINE_S:
            self._tried_at = now
            try:
                if self._waiting or stale or await self._have_others_revoked():
                    await self.publish()
            except (HubError, OSError) as error:
                _log.error("the revocation list was not written, trying again: %s", error)
            state = read_list(self._crl, now)
        if (state is None or state.left < ALARM_BELOW) and now - self._alarm_at >= ALARM_EVERY_S:
            self._alarm_at = now
            await self._alarm(state, now)

    async def _publish(self, more: tuple[Revoked, ...], life: timedelta) -> int:
        now = self._clock()
        async with self._store.write() as connection:
            await connection.execute(delete(revocations).where(revocations.c.ends_at < now - KEPT_S))
            rows = (await connection.execute(select(revocations).order_by(revocations.c.serial))).all()
        own = [Revoked(int(row.serial, 16), row.revoked_at) for row in rows if not row.external]
        self._listed = len(rows)
        theirs = await self._issuer.crl((int(row.serial, 16) for row in rows if row.external), now)
        await asyncio.to_thread(self._ca.write_crl, [*own, *more], now, life, theirs)
        self._reload()
        return len(rows)

    async def _have_others_revoked(self) -> bool:
        async with self._store.read() as connection:
            count = (await connection.execute(select(func.count()).select_from(revocations))).scalar_one()
        return int(count) != self._listed

    async def _alarm(self, state: ListState | None, now: float) -> None:
        days = 0.0 if state is None else (state.ends_at - now) / 86_400
        _log.error("the revocation list ends in %.1f days and cannot be written anew: no device could connect", days)
        async with self._store.write() as connection:
            await self._events.record(connection, "crl.ending", HUB, "crl", days_left=round(days, 2))


def read_list(path: Path, now: float) -> ListState | None:
    """How the list stands, the one that ends first where there are several; None when there is none to read."""
    try:
        parts = path.read_bytes().split(END)
        lists = [x509.load_pem_x509_crl(part + END) for part in parts if part.strip()]
    except (OSError, ValueError):
        return None
    states = []
    for one in lists:
        if one.next_update_utc is None:
            continue
        ends, begins = one.next_update_utc.timestamp(), one.last_update_utc.timestamp()
        states.append(ListState(ends, (ends - now) / max(ends - begins, 1.0)))
    return min(states, key=lambda state: state.ends_at, default=None)
