"""Before a rollout begins: would the configuration of every device satisfy the schema of what it is to run?

The hook that `rollouts.controller` awaits; wired by `composition`.
"""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.configuration import book
from cloud_hub.configuration.fitting import Fitting, Pairs, beside, takers
from cloud_hub.configuration.resolving import resolved_by
from cloud_hub.rollouts.new import NewRollout
from cloud_hub.rollouts.targeting import Chosen


class RolloutCheck:
    """Asks nobody and reads no device where no schema says anything, and no configuration comes along."""

    def __init__(self, fitting: Fitting) -> None:
        self._fitting = fitting

    async def __call__(self, connection: AsyncConnection, new: NewRollout, chosen: Chosen) -> None:
        """Raises Conflict `configuration-unfit`, NotFound `configuration-not-found`."""
        if not new.config and not await self._fitting.has_schema(connection, new.module, new.version):
            return
        revision = new.config or await book.standing(connection, new.module)
        document = await book.document(connection, new.module, revision)
        pairs = Pairs()
        devices = [device for group in chosen.groups for device in group]
        async for page in takers(connection, new.module, new.version, devices):
            asking = [one.device for one in page if new.config or one.config is None]
            given = await resolved_by(connection, document, asking) if asking else {}
            for one in page:
                pairs.add(one, dict(given.get(one.device, one.config) or {}))
            for one in await beside(connection, new.module, given) if new.config else ():
                if one.version > new.version:  # an older candidate goes
                    pairs.add(one, given[one.device])
        await self._fitting.require(new.module, pairs)
