"""The part of the hub's client that has to do with what is carried between hubs. Mixed into `client.HubClient`."""

from __future__ import annotations

from pathlib import Path

from cloud_hub.api.sites import ImportModule, MergeRequest, ReceiptText, SiteKey
from cloud_hub.operator.transport import Progress, Transport, path_of
from cloud_hub.packaging import ModuleRelease
from cloud_hub.sites.book import Site
from cloud_hub.sites.merging import Merged
from cloud_hub.sites.receipts import Receipt
from cloud_hub.sites.registry import CarriedDevice, NewSite

MERGE_S = 3600.0


def _no_progress(_more: int) -> None:
    """For callers who show none."""


class SiteCalls:
    _http: Transport

    async def site_key(self) -> SiteKey:
        return await self._http.ask(SiteKey, "GET", "/site/key")

    async def sites(self, limit: int = 1000, after: str = "") -> list[Site]:
        """By name."""
        return await self._http.ask(list[Site], "GET", "/sites", query={"limit": limit, "after": after})

    async def site(self, name: str) -> Site:
        return await self._http.ask(Site, "GET", path_of("sites", name))

    async def add_site(self, new: NewSite) -> Site:
        return await self._http.ask(Site, "POST", "/sites", new)

    async def remove_site(self, name: str) -> None:
        await self._http.raw("DELETE", path_of("sites", name))

    async def site_devices(self, name: str, limit: int = 1000, after: str = "") -> list[CarriedDevice]:
        """By id."""
        query: dict[str, str | int] = {"limit": limit, "after": after}
        return await self._http.ask(list[CarriedDevice], "GET", path_of("sites", name, "devices"), query=query)

    async def pack_site(self, target: Path, progress: Progress = _no_progress) -> int:
        """Bytes written to `target`."""
        return await self._http.download("/site/pack", target, progress)

    async def merge_pack(self, site: str, sha256: str, skip_unknown: bool = False) -> Merged:
        """A pack that has been uploaded."""
        return await self._http.ask(
            Merged, "POST", path_of("sites", site, "merge"), MergeRequest(sha256, skip_unknown), answer_s=MERGE_S
        )

    async def take_receipt(self, receipt: str) -> Receipt:
        return await self._http.ask(Receipt, "POST", "/site/receipts", ReceiptText(receipt))

    async def import_module(self, manifest_sha256: str, publisher: str = "") -> ModuleRelease:
        """Manifest and files have been uploaded, and verified by whoever calls."""
        return await self._http.ask(ModuleRelease, "POST", "/modules/import", ImportModule(manifest_sha256, publisher))
