"""The part of the hub's client that has to do with versions against each other. Mixed into `client.HubClient`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from cloud_hub.operator.transport import Transport

if TYPE_CHECKING:
    from cloud_hub.arms.compare import Comparison
    from cloud_hub.arms.margins import ComparisonQuery


class ArmCalls:
    _http: Transport

    async def compare(self, query: ComparisonQuery) -> Comparison:
        """One version against another, as it stands now."""
        from cloud_hub.arms.compare import Comparison

        return await self._http.ask(Comparison, "GET", "/comparisons", query=msgspec.structs.asdict(query))
