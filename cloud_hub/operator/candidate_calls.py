"""The part of the hub's client that has to do with candidates. Mixed into `client.HubClient`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cloud_hub.operator.transport import Transport, path_of

if TYPE_CHECKING:
    from cloud_hub.arms.candidate import Candidate, CandidateReport, NewCandidate, Promotion


class CandidateCalls:
    _http: Transport

    async def start_candidate(self, new: NewCandidate) -> Candidate:
        from cloud_hub.arms.candidate import Candidate

        return await self._http.ask(Candidate, "POST", "/candidates", new)

    async def candidates(self, module: str = "", state: str = "", limit: int = 100) -> list[Candidate]:
        """Newest first."""
        from cloud_hub.arms.candidate import Candidate

        query: dict[str, str | int] = {"module": module, "state": state, "limit": limit}
        return await self._http.ask(list[Candidate], "GET", "/candidates", query=query)

    async def candidate(self, candidate: str) -> Candidate:
        from cloud_hub.arms.candidate import Candidate

        return await self._http.ask(Candidate, "GET", path_of("candidates", candidate))

    async def candidate_report(self, candidate: str, baseline: int = 0) -> CandidateReport:
        """How it does, against version `baseline` (0: the newest one below it)."""
        from cloud_hub.arms.candidate import CandidateReport

        path = path_of("candidates", candidate, "report")
        return await self._http.ask(CandidateReport, "GET", path, query={"baseline": baseline})

    async def change_candidate_share(self, candidate: str, share: float) -> Candidate:
        from cloud_hub.arms.candidate import Candidate, ShareChange

        path = path_of("candidates", candidate, "share")
        return await self._http.ask(Candidate, "POST", path, ShareChange(share))

    async def promote_candidate(self, candidate: str, how: Promotion | None = None) -> Candidate:
        """The main version of its devices, by a rollout that starts now."""
        from cloud_hub.arms.candidate import Candidate, Promotion

        path = path_of("candidates", candidate, "promote")
        return await self._http.ask(Candidate, "POST", path, how or Promotion())

    async def drop_candidate(self, candidate: str, reason: str = "") -> Candidate:
        """Taken from every device."""
        from cloud_hub.arms.candidate import Candidate, Drop

        return await self._http.ask(Candidate, "POST", path_of("candidates", candidate, "drop"), Drop(reason))
