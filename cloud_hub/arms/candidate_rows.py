"""Candidates as rows, and what devices have of them. Every query of `candidates`, which gives the connection."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Any, Final

import msgspec
from sqlalchemy import and_, func, insert, select, update
from sqlalchemy.engine import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.arms.candidate import Candidate, CandidateState, Outcomes
from cloud_hub.desired import CANDIDATE, MAIN
from cloud_hub.errors import NotFound
from cloud_hub.rollouts.beside import Beside
from cloud_hub.rollouts.states import ExecutionState
from cloud_hub.store.engine import among
from cloud_hub.store.tables import assignments, candidates, devices, executions, modules, rollouts
from modules.messages import ModuleReport, decode_report

MOST_READ: Final = 200  # devices whose counts are summed: each is a report to decode
MOST_BUILDS: Final = 20  # main versions that a candidate is held against


async def add(connection: AsyncConnection, candidate: Candidate) -> None:
    await connection.execute(insert(candidates).values(**msgspec.to_builtins(candidate)))


async def load(connection: AsyncConnection, id_: str) -> Candidate:
    """Raises NotFound `candidate-not-found`."""
    row = (await connection.execute(select(candidates).where(candidates.c.id == id_))).one_or_none()
    if row is None:
        raise NotFound("candidate-not-found", f"no candidate {id_[:80]}", id=id_[:80])
    return _candidate(row)


async def page(
    connection: AsyncConnection, module: str, state: str, after: str, limit: int, among_ids: Collection[str] | None
) -> list[Candidate]:
    """Newest first, those behind `after` (an id)."""
    here = candidates.c
    query = select(candidates).order_by(here.created_at.desc(), here.id.desc()).limit(limit)
    if module:
        query = query.where(here.module == module)
    if state:
        query = query.where(here.state == state)
    if among_ids is not None:
        query = query.where(among(here.id, among_ids))
    if after:
        last = await load(connection, after)
        earlier = and_(here.created_at == last.created_at, here.id < last.id)
        query = query.where((here.created_at < last.created_at) | earlier)
    return [_candidate(row) for row in await connection.execute(query)]


async def end(connection: AsyncConnection, id_: str, state: CandidateState, now: float, promoted_by: str = "") -> None:
    change = update(candidates).where(candidates.c.id == id_)
    await connection.execute(change.values(state=state, ended_at=now, promoted_by=promoted_by))


async def change_share(connection: AsyncConnection, candidate: Candidate, share: float) -> None:
    """For devices that get it from now on."""
    beside = Beside(candidate.way, share, candidate.split, candidate.salt)
    plan = (await connection.execute(select(rollouts.c.plan).where(rollouts.c.id == candidate.id))).scalar_one()
    plan = {**plan, "candidate": msgspec.to_builtins(beside)}
    await connection.execute(update(rollouts).where(rollouts.c.id == candidate.id).values(plan=plan))
    await connection.execute(update(candidates).where(candidates.c.id == candidate.id).values(share=share))


async def share_some(connection: AsyncConnection, id_: str, share: float, limit: int) -> dict[str, int]:
    """Devices that have the candidate with another share get this one; their new director versions."""
    here = assignments.c
    ours = select(here.device).where(here.deployment == id_, here.role == CANDIDATE, here.share != share)
    found = list((await connection.execute(ours.order_by(here.device).limit(limit))).scalars())
    if not found:
        return {}
    mine = and_(here.deployment == id_, here.role == CANDIDATE, here.device.in_(found))
    await connection.execute(update(assignments).where(mine).values(share=share))
    raised = update(devices).where(devices.c.id.in_(found)).values(director_version=devices.c.director_version + 1)
    told = await connection.execute(raised.returning(devices.c.id, devices.c.director_version))
    return {device: int(version) for device, version in told}


async def main_builds(connection: AsyncConnection, module: str) -> dict[str, set[str]]:
    """Manifests of the main versions that are out, by profile."""
    built = and_(
        modules.c.name == assignments.c.module,
        modules.c.version == assignments.c.version,
        modules.c.profile == assignments.c.profile,
    )
    query = (
        select(modules.c.profile, modules.c.manifest_sha256)
        .select_from(assignments.join(modules, built))
        .where(assignments.c.module == module, assignments.c.role == MAIN, assignments.c.mode == "serve")
        .distinct()
        .limit(MOST_BUILDS)
    )
    found: dict[str, set[str]] = {}
    for profile, sha256 in await connection.execute(query):
        found.setdefault(profile, set()).add(sha256)
    return found


async def standing(connection: AsyncConnection, id_: str) -> tuple[str, int]:
    """The state of the candidate's rollout, and how many devices have it verified."""
    state = (await connection.execute(select(rollouts.c.state).where(rollouts.c.id == id_))).scalar_one()
    query = select(func.count()).select_from(executions)
    query = query.where(executions.c.rollout == id_, executions.c.state == str(ExecutionState.VERIFIED))
    return state, (await connection.execute(query)).scalar_one()


async def outcomes(
    connection: AsyncConnection, candidate: Candidate, mine: Collection[str] | None
) -> tuple[Outcomes, bool]:
    """Summed over the last reports of devices that have it; and whether there are more than were read."""
    query = (
        select(devices.c.report)
        .join(assignments, assignments.c.device == devices.c.id)
        .where(assignments.c.deployment == candidate.id, assignments.c.module == candidate.module)
        .where(devices.c.report.is_not(None))
        .order_by(devices.c.id)
        .limit(MOST_READ + 1)
    )
    if mine is not None:
        query = query.where(among(devices.c.id, mine))
    reports = list((await connection.execute(query)).scalars())
    held = (one for body in reports[:MOST_READ] for one in decode_report(body).modules)
    return _summed([one for one in held if one.deployment == candidate.id]), len(reports) > MOST_READ


def _summed(found: Collection[ModuleReport]) -> Outcomes:
    counts: Counter[str] = Counter()
    for one in found:
        counts.update(one.beside)
    reasons = {word: count for word, count in sorted(counts.items()) if word.startswith(_REASONS)}
    missed, kept, fell_back = (
        sum(count for word, count in reasons.items() if word.startswith(prefix)) for prefix in _REASONS
    )
    return Outcomes(
        devices=len(found),
        requests=sum(one.requests for one in found),
        errors=sum(one.errors for one in found),
        restarts=sum(one.restarts for one in found),
        offered=counts["offered"],
        fed=counts["fed"],
        missed=missed,
        answered=counts["answered"],
        kept=kept,
        fell_back=fell_back,
        compared=counts["compared"],
        agreed=counts["agreed"],
        reasons=reasons,
    )


_REASONS = ("missed-", "kept-", "fell-back-")


def _candidate(row: Row[Any]) -> Candidate:
    return msgspec.convert({name: getattr(row, name) for name in Candidate.__struct_fields__}, Candidate)
