"""The part of the hub's client that has to do with labels and quality. Mixed into `client.HubClient`."""

from __future__ import annotations

from cloud_hub.labels.book import Label
from cloud_hub.labels.bounds import Bound, NewBound
from cloud_hub.labels.report import QualityQuery, QualityReport
from cloud_hub.labels.rows import LabelQuery, LabelsTaken, NewLabels
from cloud_hub.operator.transport import Transport


class LabelCalls:
    _http: Transport

    async def add_labels(self, new: NewLabels) -> LabelsTaken:
        """At most MAX_ROWS at a time; the same again changes nothing."""
        return await self._http.ask(LabelsTaken, "POST", "/labels", new)

    async def labels(self, query: LabelQuery) -> list[Label]:
        """One page, in the order in which they came."""
        return await self._http.ask(list[Label], "GET", "/labels", query=_fields(query))

    async def quality(self, query: QualityQuery) -> list[QualityReport]:
        """One per output."""
        return await self._http.ask(list[QualityReport], "GET", "/quality", query=_fields(query))

    async def quality_bounds(self, module: str = "") -> list[Bound]:
        return await self._http.ask(list[Bound], "GET", "/quality/bounds", query={"module": module})

    async def set_quality_bound(self, new: NewBound) -> Bound:
        return await self._http.ask(Bound, "PUT", "/quality/bounds", new)

    async def remove_quality_bound(self, module: str, output: str = "") -> None:
        await self._http.raw("DELETE", "/quality/bounds", query={"module": module, "output": output})


def _fields(query: LabelQuery | QualityQuery) -> dict[str, str | float | int]:
    return {name: getattr(query, name) for name in query.__struct_fields__}
