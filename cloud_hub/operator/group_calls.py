"""The part of the hub's client that has to do with groups of devices and saved queries. Mixed into `HubClient`."""

from __future__ import annotations

from cloud_hub.groups.book import Changed, DeviceGroup, Members, NewGroup
from cloud_hub.groups.saved import NewQuery, SavedQuery
from cloud_hub.operator.transport import Transport, path_of


class GroupCalls:
    _http: Transport

    async def groups(self, limit: int = 1000, after: str = "") -> list[DeviceGroup]:
        """By name; `devices` counts those that you may see."""
        return await self._http.ask(list[DeviceGroup], "GET", "/groups", query={"limit": limit, "after": after})

    async def create_group(self, new: NewGroup) -> DeviceGroup:
        return await self._http.ask(DeviceGroup, "POST", "/groups", new)

    async def group(self, name: str) -> DeviceGroup:
        return await self._http.ask(DeviceGroup, "GET", path_of("groups", name))

    async def remove_group(self, name: str) -> None:
        """Its devices stay what they are."""
        await self._http.raw("DELETE", path_of("groups", name))

    async def group_devices(self, name: str, limit: int = 1000, after: str = "") -> list[str]:
        """Ids behind `after`, in their order."""
        path = path_of("groups", name, "devices")
        return await self._http.ask(list[str], "GET", path, query={"limit": limit, "after": after})

    async def add_to_group(self, name: str, members: Members) -> Changed:
        return await self._http.ask(Changed, "POST", path_of("groups", name, "devices", "add"), members)

    async def take_from_group(self, name: str, members: Members) -> Changed:
        return await self._http.ask(Changed, "POST", path_of("groups", name, "devices", "remove"), members)

    async def saved_queries(self, limit: int = 1000, after: str = "") -> list[SavedQuery]:
        """By name."""
        return await self._http.ask(list[SavedQuery], "GET", "/queries", query={"limit": limit, "after": after})

    async def saved_query(self, name: str) -> SavedQuery:
        return await self._http.ask(SavedQuery, "GET", path_of("queries", name))

    async def save_query(self, name: str, new: NewQuery) -> SavedQuery:
        """In the place of what the name meant before."""
        return await self._http.ask(SavedQuery, "PUT", path_of("queries", name), new)

    async def remove_query(self, name: str) -> None:
        await self._http.raw("DELETE", path_of("queries", name))
