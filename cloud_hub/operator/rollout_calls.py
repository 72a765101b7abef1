"""The part of the hub's client that has to do with rollouts. Mixed into `client.HubClient`."""

from __future__ import annotations

from cloud_hub.api.rollouts import AbortRequest
from cloud_hub.operator.transport import Transport, path_of
from cloud_hub.rollouts.new import NewRollout
from cloud_hub.rollouts.states import Rollout
from cloud_hub.rollouts.status import RolloutStatus


class RolloutCalls:
    _http: Transport

    async def create_rollout(self, new: NewRollout) -> RolloutStatus:
        return await self._http.ask(RolloutStatus, "POST", "/rollouts", new)

    async def rollouts(self, state: str = "", limit: int = 100) -> list[Rollout]:
        """Newest first."""
        return await self._http.ask(list[Rollout], "GET", "/rollouts", query={"state": state, "limit": limit})

    async def rollout(self, rollout: str) -> RolloutStatus:
        return await self._http.ask(RolloutStatus, "GET", path_of("rollouts", rollout))

    async def start_rollout(self, rollout: str) -> RolloutStatus:
        return await self._http.ask(RolloutStatus, "POST", path_of("rollouts", rollout, "start"))

    async def pause_rollout(self, rollout: str) -> RolloutStatus:
        return await self._http.ask(RolloutStatus, "POST", path_of("rollouts", rollout, "pause"))

    async def resume_rollout(self, rollout: str) -> RolloutStatus:
        return await self._http.ask(RolloutStatus, "POST", path_of("rollouts", rollout, "resume"))

    async def abort_rollout(self, rollout: str, reason: str = "") -> RolloutStatus:
        return await self._http.ask(RolloutStatus, "POST", path_of("rollouts", rollout, "abort"), AbortRequest(reason))
