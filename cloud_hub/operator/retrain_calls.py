"""The part of the hub's client that has to do with retraining. Mixed into `client.HubClient`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cloud_hub.api.retraining import CancelRun, Claim, GoOn, Heard, StartRun, TrainingFailure
from cloud_hub.operator.dataset_calls import no_progress
from cloud_hub.operator.transport import Progress, Query, Transport, path_of
from cloud_hub.retraining.jobs import Job, TrainedCandidate
from cloud_hub.retraining.plan import RetrainPlan
from cloud_hub.retraining.records import KnownPlan, Run


class RetrainCalls:
    _http: Transport

    async def put_plan(self, plan: RetrainPlan) -> KnownPlan:
        return await self._http.ask(KnownPlan, "PUT", path_of("retraining", "plans", plan.name), plan)

    async def plans(self) -> list[KnownPlan]:
        return await self._http.ask(list[KnownPlan], "GET", "/retraining/plans")

    async def plan(self, name: str) -> KnownPlan:
        return await self._http.ask(KnownPlan, "GET", path_of("retraining", "plans", name))

    async def stop_plan(self, name: str) -> KnownPlan:
        return await self._http.ask(KnownPlan, "DELETE", path_of("retraining", "plans", name))

    async def download_plan_file(self, name: str, path: str, target: Path, progress: Progress = no_progress) -> int:
        return await self._http.download(path_of("retraining", "plans", name, "files") + "/" + path, target, progress)

    async def start_retraining(self, plan: str, why: str = "by hand") -> Run:
        return await self._http.ask(Run, "POST", path_of("retraining", "plans", plan, "runs"), StartRun(why))

    async def retrain_runs(self, plan: str = "", state: str = "", limit: int = 100) -> list[Run]:
        """Newest first."""
        query: Query = {"plan": plan, "state": state, "limit": limit}
        return await self._http.ask(list[Run], "GET", "/retraining/runs", query=query)

    async def retrain_run(self, run: str) -> Run:
        return await self._http.ask(Run, "GET", path_of("retraining", "runs", run))

    async def cancel_retraining(self, run: str, reason: str = "") -> Run:
        return await self._http.ask(Run, "POST", path_of("retraining", "runs", run, "cancel"), CancelRun(reason))

    async def claim_retraining(self, runner: str, plans: Sequence[str] = (), run: str = "") -> Job | None:
        """A run that waits; it is this runner's from now on."""
        found = await self._http.ask(list[Job], "POST", "/retraining/claim", Claim(runner, tuple(plans), run))
        return found[0] if found else None

    async def tell_retraining(self, run: str, runner: str, log: str) -> bool:
        """Whether to go on."""
        body = Heard(runner, log)
        return (await self._http.ask(GoOn, "POST", path_of("retraining", "runs", run, "heard"), body)).go_on

    async def hand_in(self, run: str, candidate: TrainedCandidate) -> Run:
        return await self._http.ask(Run, "POST", path_of("retraining", "runs", run, "candidate"), candidate)

    async def fail_retraining(self, run: str, runner: str, reason: str, log: str) -> Run:
        body = TrainingFailure(runner, reason[:2000], log)
        return await self._http.ask(Run, "POST", path_of("retraining", "runs", run, "failed"), body)
