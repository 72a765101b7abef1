"""The part of the hub's client that has to do with privacy. Mixed into `client.HubClient`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from cloud_hub.operator.transport import Transport

if TYPE_CHECKING:
    from cloud_hub.privacy import PrivacyQuery, PrivacySpent


class PrivacyCalls:
    _http: Transport

    async def privacy(self, query: PrivacyQuery) -> list[PrivacySpent]:
        """What private windows have spent, newest day first."""
        from cloud_hub.privacy import PrivacySpent

        return await self._http.ask(list[PrivacySpent], "GET", "/privacy", query=msgspec.structs.asdict(query))
