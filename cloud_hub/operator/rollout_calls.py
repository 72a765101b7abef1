"""The part of the hub's client that has to do with rollouts. Mixed into `client.HubClient`."""

from __future__ import annotations

from cloud_hub.api.rollouts import AbortRequest, ApprovalRequest, Why
from cloud_hub.operator.transport import Transport, path_of
from cloud_hub.rollouts.new import NewRollout
from cloud_hub.rollouts.preview import Preview
from cloud_hub.rollouts.states import Execution, Rollout
from cloud_hub.rollouts.status import RolloutStatus


class RolloutCalls:
    _http: Transport

    async def create_rollout(self, new: NewRollout) -> RolloutStatus:
        return await self._http.ask(RolloutStatus, "POST", "/rollouts", new)

    async def preview_rollout(self, new: NewRollout) -> Preview:
        """What it would mean: which devices, how many bytes, how long. Creates nothing."""
        return await self._http.ask(Preview, "POST", "/rollouts/preview", new)

    async def rollouts(self, state: str = "", limit: int = 100, module: str = "") -> list[Rollout]:
        """Newest first."""
        query: dict[str, str | int] = {"state": state, "limit": limit, "module": module}
        return await self._http.ask(list[Rollout], "GET", "/rollouts", query=query)

    async def rollout(self, rollout: str) -> RolloutStatus:
        return await self._http.ask(RolloutStatus, "GET", path_of("rollouts", rollout))

    async def executions(
        self, rollout: str, state: str = "", group: int | None = None, limit: int = 100
    ) -> list[Execution]:
        """By device id; of one state or group (from 0) where given."""
        query: dict[str, str | int] = {"state": state, "limit": limit}
        if group is not None:
            query["group"] = str(group)  # a 0 would be left out
        return await self._http.ask(list[Execution], "GET", path_of("rollouts", rollout, "executions"), query=query)

    async def start_rollout(self, rollout: str) -> RolloutStatus:
        return await self._http.ask(RolloutStatus, "POST", path_of("rollouts", rollout, "start"))

    async def pause_rollout(self, rollout: str) -> RolloutStatus:
        return await self._http.ask(RolloutStatus, "POST", path_of("rollouts", rollout, "pause"))

    async def resume_rollout(self, rollout: str) -> RolloutStatus:
        return await self._http.ask(RolloutStatus, "POST", path_of("rollouts", rollout, "resume"))

    async def abort_rollout(self, rollout: str, reason: str = "", roll_back: bool = False) -> RolloutStatus:
        """With `roll_back` devices that are verified go back, too."""
        body = AbortRequest(reason, roll_back)
        return await self._http.ask(RolloutStatus, "POST", path_of("rollouts", rollout, "abort"), body)

    async def roll_back_rollout(self, rollout: str, reason: str = "") -> RolloutStatus:
        """Every device gets back what it had before."""
        return await self._http.ask(RolloutStatus, "POST", path_of("rollouts", rollout, "roll-back"), Why(reason))

    async def finish_rollout(self, rollout: str) -> RolloutStatus:
        """Ends a rollout that devices go on to join."""
        return await self._http.ask(RolloutStatus, "POST", path_of("rollouts", rollout, "finish"))

    async def retry_rollout(self, rollout: str) -> RolloutStatus:
        """Begins again on devices that failed."""
        return await self._http.ask(RolloutStatus, "POST", path_of("rollouts", rollout, "retry"))

    async def approve_rollout(self, rollout: str, stage: str = "start", comment: str = "") -> RolloutStatus:
        """`stage` is "start", or "group:2" (groups count from 1)."""
        body = ApprovalRequest(stage, comment)
        return await self._http.ask(RolloutStatus, "POST", path_of("rollouts", rollout, "approve"), body)
