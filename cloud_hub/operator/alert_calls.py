"""The part of the hub's client that has to do with drift and alerts. Mixed into `client.HubClient`."""

from __future__ import annotations

from cloud_hub.api.alerts import Acknowledgement, NewWatch, Resolution, Snooze
from cloud_hub.monitoring.alert_book import Alert, AlertDetail
from cloud_hub.monitoring.reports import DriftReport
from cloud_hub.monitoring.watches import Watch
from cloud_hub.operator.transport import Transport, path_of


class AlertCalls:
    _http: Transport

    async def drift(
        self, module: str, version: int = 0, device: str = "", group: str = "", reference: str = ""
    ) -> list[DriftReport]:
        """One per build of the version; without a device or group of the fleet."""
        of: dict[str, str | int] = {"module": module, "version": version, "device": device}
        query = of | {"group": group, "reference": reference}
        return await self._http.ask(list[DriftReport], "GET", "/drift", query=query)

    async def alerts(self, state: str = "", module: str = "", limit: int = 100, attached: bool = True) -> list[Alert]:
        """Newest first. State "live" is all but resolved; without `attached` only those that speak for themselves."""
        query: dict[str, str | int] = {"state": state, "module": module, "limit": limit}
        return await self._http.ask(
            list[Alert], "GET", "/alerts", query=query | {"attached": "true" if attached else "false"}
        )

    async def alert(self, number: int) -> AlertDetail:
        return await self._http.ask(AlertDetail, "GET", path_of("alerts", number))

    async def acknowledge_alert(self, number: int, comment: str = "") -> AlertDetail:
        path = path_of("alerts", number, "acknowledge")
        return await self._http.ask(AlertDetail, "POST", path, Acknowledgement(comment))

    async def snooze_alert(self, number: int, for_s: float, comment: str = "") -> AlertDetail:
        return await self._http.ask(AlertDetail, "POST", path_of("alerts", number, "snooze"), Snooze(for_s, comment))

    async def resolve_alert(self, number: int, comment: str = "", normal: bool = False) -> AlertDetail:
        path = path_of("alerts", number, "resolve")
        return await self._http.ask(AlertDetail, "POST", path, Resolution(comment, normal))

    async def watches(self, module: str = "") -> list[Watch]:
        """What modules are compared with, where that is not their training data."""
        return await self._http.ask(list[Watch], "GET", "/watches", query={"module": module})

    async def set_watch(self, module: str, reference: str, scope: str = "fleet") -> Watch:
        return await self._http.ask(Watch, "PUT", path_of("watches", module), NewWatch(reference, scope))
