"""The one filter between devices and whoever asks: every list, detail and change that has to do with devices goes
through an `Access`.

What lies outside the scope is answered exactly as if it were not there, and is not counted either. Made by `api.gate`
for each request; a route below /devices/{id} or /rollouts/{id} is checked there before its handler runs.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from sqlalchemy import select

from cloud_hub.errors import Forbidden, NotFound
from cloud_hub.events import Visible
from cloud_hub.groups.resolving import in_scope
from cloud_hub.monitoring.alert_book import Alert
from cloud_hub.monitoring.scopes import FLEET, is_device
from cloud_hub.query import DeviceFacts
from cloud_hub.roles import Principal
from cloud_hub.rollouts.states import Rollout
from cloud_hub.rollouts.status import RolloutStatus
from cloud_hub.store.engine import Store, among
from cloud_hub.store.tables import devices, executions, look_scopes

HIDDEN = "(not only your devices)"


class Access:
    """What one principal may see and change, for the length of one request."""

    def __init__(self, principal: Principal, store: Store) -> None:
        self.principal = principal
        self._store = store
        self._devices: frozenset[str] | None = None

    @property
    def everything(self) -> bool:
        return self.principal.scope.everything

    def sees(self, device: DeviceFacts) -> bool:
        return self.principal.scope.matches(device)

    async def devices(self) -> frozenset[str] | None:
        """The ids in scope, retired ones too; None for everything. Read once per request."""
        if self.everything:
            return None
        if self._devices is None:
            query = select(devices.c.id).where(in_scope(self.principal.scope))
            async with self._store.read() as connection:
                self._devices = frozenset((await connection.execute(query)).scalars())
        return self._devices

    # --- devices ------------------------------------------------------------------------------------------------
    async def require_device(self, device: str) -> None:
        """Raises NotFound `device-not-found`, as for a device that is not there."""
        if not self.everything:
            await self.require_known_device(device)

    async def require_known_device(self, device: str) -> None:
        """In scope, and there. Raises NotFound `device-not-found`."""
        query = select(devices.c.id).where(devices.c.id == device, in_scope(self.principal.scope))
        async with self._store.read() as connection:
            found = (await connection.execute(query)).one_or_none()
        if found is None:
            raise _unknown(device)

    def require_inside(self, device: DeviceFacts, what: str) -> None:
        """For what a device is going to be. Raises Forbidden `scope-exceeded`."""
        if not self.sees(device):
            raise self._exceeded(what)

    async def require_admission(self, device: str, profile: str, tags: Mapping[str, str]) -> None:
        """For a claim token. Empty texts mean any, which a scope that speaks of them does not allow.

        Raises Forbidden `scope-exceeded`, also where a device of that id is there and is out of scope: ids are one
        namespace for all, so that it is taken cannot be hidden.
        """
        scope = self.principal.scope
        # A pattern of ids is compared as text: what it covers must be no more than what a pattern of the scope does.
        open_id = not device or ("*" in device and scope.excludes("id"))
        if (open_id and scope.names("id")) or (not profile and scope.names("profile")):
            raise self._exceeded("a token for any device")
        self.require_inside(DeviceFacts(device, profile, tags), "a token for this device")
        mine = await self.devices()
        if mine is None or not device or device in mine:
            return
        async with self._store.read() as connection:
            taken = (await connection.execute(select(devices.c.id).where(devices.c.id == device))).one_or_none()
        if taken is not None:
            raise self._exceeded("a token for this device")

    # --- rollouts -----------------------------------------------------------------------------------------------
    async def require_rollout(self, rollout: str, change: bool) -> None:
        """Seen by whoever sees one of its devices, changed only by whoever sees all of them.

        Raises NotFound `rollout-not-found`, as for one that is not there, and Forbidden `scope-exceeded`.
        """
        mine = await self.devices()
        if mine is None:
            return
        query = select(executions.c.device).where(executions.c.rollout == rollout)
        async with self._store.read() as connection:
            members = set((await connection.execute(query)).scalars())
        if not members & mine:
            raise NotFound("rollout-not-found", f"no rollout {rollout[:80]}", id=rollout[:80])
        if change and members - mine:
            raise self._exceeded(f"a change of rollout {rollout}")

    async def rollouts(self) -> frozenset[str] | None:
        """Ids of the rollouts that have a device in scope; None for everything."""
        mine = await self.devices()
        if mine is None:
            return None
        query = select(executions.c.rollout).where(among(executions.c.device, mine)).distinct()
        async with self._store.read() as connection:
            return frozenset((await connection.execute(query)).scalars())

    async def own_rollouts(self) -> frozenset[str] | None:
        """Ids of the rollouts that have only devices in scope; None for everything."""
        some, mine = await self.rollouts(), await self.devices()
        if some is None or mine is None:
            return None
        others = select(executions.c.rollout).where(~among(executions.c.device, mine)).distinct()
        async with self._store.read() as connection:
            return some - frozenset((await connection.execute(others)).scalars())

    async def shown(self, found: list[Rollout]) -> list[Rollout]:
        """Without words about the devices of others: target and reason may name or count them."""
        own = await self.own_rollouts()
        if own is None:
            return found
        return [rollout if rollout.id in own else _without_words(rollout) for rollout in found]

    async def shown_status(self, found: RolloutStatus) -> RolloutStatus:
        """As `shown`. What it counts and names is the caller's to ask for with `devices`."""
        (rollout,) = await self.shown([found.rollout])
        return msgspec.structs.replace(found, rollout=rollout)

    # --- monitoring and events ----------------------------------------------------------------------------------
    async def require_one_device(self, device: str) -> None:
        """For what would else be counted over the whole fleet. Raises Forbidden `scope-needs-device`."""
        if self.everything:
            return
        if not device:
            raise Forbidden(
                "scope-needs-device",
                f"your scope is {self.principal.scope}: name a device; the whole fleet is not yours to see",
            )
        await self.require_device(device)

    async def shown_alert(self, alert: Alert) -> Alert | None:
        """Without what it says of devices that are out of scope; None where it is about none that is in scope.

        An alert of many that speaks for a device in scope is shown without counts: it says what, not how many.
        """
        mine = await self.devices()
        if mine is None:
            return alert
        device = alert.group.device
        if is_device(device):
            return _shown(alert, mine) if device in mine else None
        shares = any(share.device in mine for share in alert.evidence.devices)
        if shares or (device == FLEET and await self._counted(alert.manifest_sha256, mine)):
            return _without_counts(_shown(alert, mine))
        return None

    async def require_alert(self, alert: Alert, change: bool) -> Alert:
        """Raises NotFound `alert-not-found`, as for one that is not there, and Forbidden `scope-exceeded`."""
        shown = await self.shown_alert(alert)
        if shown is None:
            raise NotFound("alert-not-found", f"no alert {alert.id}", id=alert.id)
        if change and not is_device(alert.group.device):
            self.require_everything(f"a change of alert {alert.id}, which is about more than your devices,")
        return shown

    async def _counted(self, manifest_sha256: str, mine: frozenset[str]) -> bool:
        query = select(look_scopes.c.device).where(
            look_scopes.c.manifest_sha256 == manifest_sha256, among(look_scopes.c.device, mine)
        )
        async with self._store.read() as connection:
            return (await connection.execute(query.limit(1))).first() is not None

    async def visible_events(self) -> Visible | None:
        mine, own = await self.devices(), await self.own_rollouts()
        return None if mine is None or own is None else Visible(mine, own)

    def require_everything(self, what: str) -> None:
        """Raises Forbidden `scope-exceeded`."""
        if not self.everything:
            raise self._exceeded(what)

    def _exceeded(self, what: str) -> Forbidden:
        scope = self.principal.scope
        return Forbidden("scope-exceeded", f"{what} is outside your scope ({scope}); nothing was changed")


def _shown(alert: Alert, mine: frozenset[str]) -> Alert:
    told = alert.evidence
    features = told.features
    if told.reference != "training":
        features = tuple(msgspec.structs.replace(feature, reference=()) for feature in features)
    shown = msgspec.structs.replace(
        told,
        features=features,
        devices=tuple(share for share in told.devices if share.device in mine),
        causes=tuple(cause for cause in told.causes if cause.subject in mine),
        common=(),
    )
    return msgspec.structs.replace(alert, evidence=shown, parent=None)


def _without_counts(alert: Alert) -> Alert:
    told = alert.evidence
    features = (msgspec.structs.replace(one, rows=0, cells=(), reference=(), current=()) for one in told.features)
    rates = (msgspec.structs.replace(one, rows=0) for one in told.rates)
    shown = msgspec.structs.replace(told, features=tuple(features), rates=tuple(rates), problems=(), affected=0)
    return msgspec.structs.replace(alert, evidence=shown)


def _without_words(rollout: Rollout) -> Rollout:
    return msgspec.structs.replace(rollout, target=HIDDEN, reason=HIDDEN if rollout.reason else "")


def _unknown(device: str) -> NotFound:
    return NotFound("device-not-found", f"no device {device[:63]}", device=device[:63])
