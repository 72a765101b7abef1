"""Plans and runs as they are kept: rows in, values out. What happens next is `runs`' to say."""

from __future__ import annotations

import enum
import secrets
from typing import Any, Final

import msgspec
from sqlalchemy import Row, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.errors import NotFound
from cloud_hub.registry import ModelFile
from cloud_hub.retraining.judging import Verdict
from cloud_hub.retraining.plan import RetrainPlan
from cloud_hub.store.behind import behind
from cloud_hub.store.tables import retrain_plans, retrain_runs

MAX_LISTED: Final = 500
LOG_CHARS: Final = 20_000  # of the command's output, the end


class RunState(enum.StrEnum):
    """The order of a run that goes well, and how runs end."""

    QUEUED = "queued"
    COLLECTING = "collecting"  # the data set is built
    WAITING = "waiting"  # for a runner
    TRAINING = "training"  # at a runner
    JUDGING = "judging"
    REGISTERING = "registering"
    BUILDING = "building"
    SIGNING = "signing"
    UNSIGNED = "unsigned"  # waits for the publisher's signature
    STARTING = "starting"  # the rollout
    CANARY = "canary"  # it runs
    FINISHED = "finished"
    REFUSED = "refused"  # the candidate is not good enough
    SKIPPED = "skipped"  # there was too little to train on
    FAILED = "failed"
    CANCELLED = "cancelled"


ENDED: Final = frozenset({RunState.FINISHED, RunState.REFUSED, RunState.SKIPPED, RunState.FAILED, RunState.CANCELLED})
AT_RUNNER: Final = frozenset({RunState.WAITING, RunState.TRAINING})


class Result(msgspec.Struct, frozen=True):
    """What has come of a run so far. `next` is what a person does now, as a command; `log` the end of what the training
    command said. Files are those of the candidate, uploaded; `given_reference` is a reference sample among them.
    """

    dataset: str = ""
    dataset_name: str = ""
    dataset_version: int = 0
    champion: int = 0
    files: tuple[ModelFile, ...] = ()
    given_reference: str = ""
    git_commit: str = ""
    mlflow_run: str = ""
    mlflow_uri: str = ""
    training_s: float = 0.0
    log: str = ""
    verdict: Verdict | None = None
    reference: str = ""
    version: int = 0
    modules: tuple[str, ...] = ()
    rollout: str = ""
    reason: str = ""
    next: str = ""


class Run(msgspec.Struct, frozen=True):
    """One run of a plan. Times are seconds since the epoch; `heard_at` is the runner's last word."""

    id: str
    plan: str
    module: str
    state: RunState
    why: str
    actor: str
    runner: str
    created_at: float
    changed_at: float
    heard_at: float | None
    finished_at: float | None
    result: Result


class KnownPlan(msgspec.Struct, frozen=True):
    """A plan with where it stands. `due_at` is when the next run starts by itself, None when none is due."""

    plan: RetrainPlan
    author: str
    created_at: float
    stopped_at: float | None
    due_at: float | None
    due_why: str
    last_run_at: float | None


async def put_plan(connection: AsyncConnection, plan: RetrainPlan, author: str, now: float) -> bool:
    """Whether it is new; else it takes the place of the one before, and is followed again if that was stopped."""
    values: dict[str, Any] = {
        "module": plan.module, "plan": msgspec.to_builtins(plan), "author": author, "stopped_at": None,
        "due_at": None, "due_why": "",
    }  # fmt: skip
    changed = await connection.execute(update(retrain_plans).where(retrain_plans.c.name == plan.name).values(values))
    if changed.rowcount:
        return False
    await connection.execute(insert(retrain_plans).values(name=plan.name, created_at=now, **values))
    return True


async def get_plan(connection: AsyncConnection, name: str) -> KnownPlan:
    """Raises NotFound `plan-not-found`."""
    row = (await connection.execute(select(retrain_plans).where(retrain_plans.c.name == name))).one_or_none()
    if row is None:
        raise NotFound("plan-not-found", f"no retraining plan {name[:80]}", name=name[:80])
    return _plan(row)


async def plans(connection: AsyncConnection, followed: bool = False) -> list[KnownPlan]:
    """By name; with `followed` only those that were not stopped."""
    query = select(retrain_plans).order_by(retrain_plans.c.name).limit(MAX_LISTED)
    if followed:
        query = query.where(retrain_plans.c.stopped_at.is_(None))
    return [_plan(row) for row in await connection.execute(query)]


async def change_plan(connection: AsyncConnection, name: str, **values: object) -> None:
    await connection.execute(update(retrain_plans).where(retrain_plans.c.name == name).values(values))


async def add_run(connection: AsyncConnection, plan: RetrainPlan, why: str, actor: str, now: float) -> Run:
    run = Run(
        f"t-{secrets.token_hex(5)}", plan.name, plan.module, RunState.QUEUED, why, actor, "", now, now, None, None,
        Result(),
    )  # fmt: skip
    await connection.execute(insert(retrain_runs).values(msgspec.to_builtins(run)))
    return run


async def get_run(connection: AsyncConnection, run_id: str) -> Run:
    """Raises NotFound `run-not-found`."""
    row = (await connection.execute(select(retrain_runs).where(retrain_runs.c.id == run_id))).one_or_none()
    if row is None:
        raise NotFound("run-not-found", f"no retraining run {run_id[:80]}", id=run_id[:80])
    return _run(row)


async def runs(
    connection: AsyncConnection,
    plan: str = "",
    state: str = "",
    limit: int = 100,
    after: tuple[float, str] | None = None,
) -> list[Run]:
    """Newest first, behind the time and id of `after`."""
    query = select(retrain_runs).order_by(retrain_runs.c.created_at.desc(), retrain_runs.c.id).limit(limit)
    if plan:
        query = query.where(retrain_runs.c.plan == plan)
    if state:
        query = query.where(retrain_runs.c.state == state)
    if after is not None:
        query = query.where(behind(((retrain_runs.c.created_at, True), (retrain_runs.c.id, False)), after))
    return [_run(row) for row in await connection.execute(query)]


async def live_runs(connection: AsyncConnection, plan: str = "") -> list[Run]:
    """Those that have not ended, oldest first."""
    query = select(retrain_runs).where(retrain_runs.c.finished_at.is_(None)).order_by(retrain_runs.c.created_at)
    if plan:
        query = query.where(retrain_runs.c.plan == plan)
    return [_run(row) for row in await connection.execute(query)]


async def save_run(connection: AsyncConnection, run: Run) -> None:
    row = msgspec.to_builtins(run)
    del row["id"]
    await connection.execute(update(retrain_runs).where(retrain_runs.c.id == run.id).values(row))


async def blobs_of_retraining(connection: AsyncConnection) -> set[str]:
    """Digests of the files of plans and of runs under way: what retention must leave."""
    found: set[str] = set()
    for row in (await connection.execute(select(retrain_plans.c.plan))).scalars():
        plan = msgspec.convert(row, RetrainPlan)
        found |= {*plan.training.files.values(), *filter(None, (plan.data.base,))}
    for run in await live_runs(connection):
        result = run.result
        found |= {file.sha256 for file in result.files} | set(filter(None, (result.reference, result.given_reference)))
    return found


def _plan(row: Row[Any]) -> KnownPlan:
    values = {str(name): value for name, value in row._mapping.items() if name not in ("name", "module")}
    return msgspec.convert(values, KnownPlan)


def _run(row: Row[Any]) -> Run:
    return msgspec.convert({str(name): value for name, value in row._mapping.items()}, Run)
