"""The part of the hub's client that has to do with configurations of modules. Mixed into `client.HubClient`."""

from __future__ import annotations

from typing import Any

from cloud_hub.api.configuration import ApplyRequest
from cloud_hub.configuration.book import Revision
from cloud_hub.configuration.configurations import ChangeResult, ConfigurationChange
from cloud_hub.configuration.document import ConfigDifference
from cloud_hub.configuration.viewing import DeviceConfiguration, ModuleConfiguration
from cloud_hub.operator.transport import Transport, path_of


class ConfigurationCalls:
    _http: Transport

    async def configuration(self, module: str) -> ModuleConfiguration:
        return await self._http.ask(ModuleConfiguration, "GET", path_of("configurations", module))

    async def change_configuration(self, module: str, change: ConfigurationChange) -> ChangeResult:
        return await self._http.ask(ChangeResult, "POST", path_of("configurations", module), change)

    async def apply_configuration(self, module: str, rollout: dict[str, Any] | None = None) -> ChangeResult:
        """Rolls the newest revision out to devices that have another configuration."""
        path = path_of("configurations", module, "apply")
        return await self._http.ask(ChangeResult, "POST", path, ApplyRequest(rollout or {}))

    async def configuration_revisions(self, module: str, limit: int = 100) -> list[Revision]:
        """Newest first."""
        path = path_of("configurations", module, "revisions")
        return await self._http.ask(list[Revision], "GET", path, query={"limit": limit})

    async def configuration_revision(self, module: str, revision: int) -> Revision:
        return await self._http.ask(Revision, "GET", path_of("configurations", module, "revisions", revision))

    async def configuration_differences(self, module: str, before: int, after: int) -> list[ConfigDifference]:
        path = path_of("configurations", module, "differences")
        return await self._http.ask(list[ConfigDifference], "GET", path, query={"before": before, "after": after})

    async def device_configuration(self, device: str, module: str) -> DeviceConfiguration:
        return await self._http.ask(DeviceConfiguration, "GET", path_of("devices", device, "configurations", module))
