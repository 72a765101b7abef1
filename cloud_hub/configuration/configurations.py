"""Changes the configuration of modules: checks it against the devices that have it, keeps a revision, rolls it out.

A revision is a proposal until a rollout has brought it to its devices; what stands until then is what was there
before. So a rollout that fails, or is rolled back, leaves nothing to tidy up. Called by `api.configuration`; rollouts
are the engine's (`rollouts.controller`), which asks `resolving` for what each device gets.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final

import msgspec
from sqlalchemy import Select, delete, select
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.clock import Clock
from cloud_hub.configuration import book
from cloud_hub.configuration.changes import LayerChange, changed
from cloud_hub.configuration.document import ConfigDifference, Document, check, differences
from cloud_hub.configuration.fitting import Fitting, Holder, Pairs, beside, holders
from cloud_hub.configuration.resolving import resolved_by, target_query
from cloud_hub.errors import BadRequest, Conflict, HubError, NotFound
from cloud_hub.events import Events
from cloud_hub.groups.resolving import resolved as meaning
from cloud_hub.rollouts.controller import Controller
from cloud_hub.rollouts.new import NewRollout
from cloud_hub.store.engine import Store, among
from cloud_hub.store.tables import configurations, devices, modules, rollouts
from firmware_profiles.profile import NAME_PATTERN
from modules.configuration import config_digest

UNDER_WAY: Final = ("draft", "running", "paused", "rolling_back")
SHOWN: Final = 20


class ConfigurationChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What is to change: one `layer`, or with `document` everything, or with `revision` back to what that one said.

    `base` is the revision that the change was made for (0: whichever stands); another one that stands by now refuses
    it. `rollout` has fields of a new rollout (groups, thresholds, ...); without any all devices get it at once. With
    `draft` the revision is kept and not rolled out, with `dry_run` nothing is kept.
    """

    layer: LayerChange | None = None
    document: Document | None = None
    revision: int = 0
    base: int = 0
    comment: Annotated[str, msgspec.Meta(max_length=500, pattern=r"^[^\x00]*$")] = ""
    rollout: dict[str, Any] = {}  # as in NewRollout
    draft: bool = False
    dry_run: bool = False

    def __post_init__(self) -> None:
        if sum((self.layer is not None, self.document is not None, self.revision > 0)) != 1:
            raise ValueError("expected one of layer, document and revision")


class ChangeResult(msgspec.Struct, frozen=True):
    """`revision` is the new one, 0 with `dry_run` or where nothing differs. `devices` get another configuration by it;
    `examples` are some of them. `rollout` brings it to them, empty for a draft or where no device changes.
    """

    module: str
    revision: int
    base: int
    differences: tuple[ConfigDifference, ...]
    devices: int
    examples: tuple[str, ...]
    rollout: str = ""


@dataclass
class _Concerned:
    """Devices that a revision gives another configuration."""

    devices: int = 0
    examples: list[str] = field(default_factory=list)
    pairs: Pairs = field(default_factory=Pairs)

    def add(self, holder: Holder, config: dict[str, Any]) -> None:
        self.devices += 1
        self.pairs.add(holder, config)
        if len(self.examples) < SHOWN:
            self.examples.append(holder.device)


class Configurations:
    """All modules' configurations."""

    def __init__(self, store: Store, events: Events, rollouts: Controller, fitting: Fitting, clock: Clock) -> None:
        self._store, self._events, self._rollouts, self._clock = store, events, rollouts, clock
        self._fitting = fitting

    async def change(self, module: str, change: ConfigurationChange, actor: str) -> ChangeResult:
        """Raises NotFound `module-not-found`, `device-not-found` or `configuration-not-found`, BadRequest
        `configuration-invalid`, `query-invalid`, `target-changes` or `plan-invalid`, Conflict `configuration-changed`,
        `configuration-under-way`, `configuration-unfit`, and what creating a rollout raises.
        """
        async with self._store.read() as connection:
            base = await self._base(connection, module, change.base)
            before = await book.document(connection, module, base)
            after = await self._after(connection, module, change, before)
            found = tuple(differences(before, after))
            concerned = await _concerned(connection, module, after) if found else _Concerned()
        await self._fitting.require(module, concerned.pairs)
        result = ChangeResult(module, 0, base, found, concerned.devices, tuple(concerned.examples))
        if change.dry_run or not found:
            return result
        planned = _planned(module, _target(change), change.rollout)
        revision = await self._keep(module, after, base, change, concerned.devices, actor)
        result = msgspec.structs.replace(result, revision=revision)
        if change.draft or not concerned.devices:
            return result
        return msgspec.structs.replace(result, rollout=await self._roll_out(module, planned, revision, actor))

    async def apply(self, module: str, rollout: dict[str, Any], actor: str) -> ChangeResult:
        """Rolls the newest revision out: a draft, one whose rollout failed, or the one that stands to devices that
        belong elsewhere by now. Raises as `change`.
        """
        async with self._store.read() as connection:
            newest = await book.history(connection, module, 1)
            if not newest:
                raise NotFound("configuration-not-found", f"module {module} has no configuration", module=module)
            base = await self._base(connection, module, 0)
            before, after = await book.document(connection, module, base), newest[0].document
            concerned = await _concerned(connection, module, after)
        await self._fitting.require(module, concerned.pairs)
        revision, found = newest[0].revision, tuple(differences(before, after))
        result = ChangeResult(module, revision, base, found, concerned.devices, tuple(concerned.examples))
        if concerned.devices:
            planned = _planned(module, "all", rollout)
            return msgspec.structs.replace(result, rollout=await self._start(planned, revision, actor))
        async with self._store.write() as connection:
            await book.stand(connection, module, revision, self._clock())
        return result

    async def _base(self, connection: AsyncConnection, module: str, expected: int) -> int:
        """The revision that stands, which may be changed now."""
        await require_module(connection, module)
        stands = await book.standing(connection, module)
        if expected and expected != stands:
            text = f"configuration of {module}: expected revision {expected} to stand, it is {stands}; look again"
            raise Conflict("configuration-changed", text, module=module, expected=expected, got=stands)
        carrier = await under_way(connection, module)
        if carrier:
            text = f"configuration of {module}: rollout {carrier} carries one; wait for it, or abort it"
            raise Conflict("configuration-under-way", text, module=module, rollout=carrier)
        return stands

    async def _after(
        self, connection: AsyncConnection, module: str, change: ConfigurationChange, before: Document
    ) -> Document:
        if change.revision:
            return await book.document(connection, module, change.revision)
        after = change.document or changed(before, change.layer or LayerChange())
        check(after)
        for override in after.targets:
            target_query(override.target)
            await meaning(connection, override.target)
        fresh = sorted(after.devices.keys() - before.devices.keys())
        known = set((await connection.execute(select(devices.c.id).where(among(devices.c.id, fresh)))).scalars())
        if missing := [device for device in fresh if device not in known]:
            raise NotFound("device-not-found", f"no device {', '.join(missing[:SHOWN])}; nothing was changed")
        return after

    async def _keep(
        self, module: str, after: Document, base: int, change: ConfigurationChange, concerned: int, actor: str
    ) -> int:
        async with self._store.write() as connection:
            await self._base(connection, module, base)
            made = await book.add(connection, module, after, base, change.comment, actor, self._clock())
            said = {"revision": made.revision, "base": base, "devices": concerned, "back_to": change.revision}
            await self._events.record(connection, "configuration.changed", actor, module, **said)
            if not concerned:
                await book.stand(connection, module, made.revision, self._clock())
        return made.revision

    async def _roll_out(self, module: str, planned: dict[str, Any], revision: int, actor: str) -> str:
        """Without its rollout a revision that nobody asked to keep goes again."""
        try:
            return await self._start(planned, revision, actor)
        except HubError as error:
            async with self._store.write() as connection:
                mine = (configurations.c.module == module, configurations.c.revision == revision)
                await connection.execute(delete(configurations).where(*mine))
                why = {"revision": revision, "key": error.key}
                await self._events.record(connection, "configuration.withdrawn", actor, module, **why)
            raise

    async def _start(self, planned: dict[str, Any], revision: int, actor: str) -> str:
        new = _new_rollout({**planned, "config": revision})
        return (await self._rollouts.create(new, actor)).rollout.id


async def _concerned(connection: AsyncConnection, module: str, document: Document) -> _Concerned:
    concerned = _Concerned()
    async for page in holders(connection, module):
        wanted = await resolved_by(connection, document, [holder.device for holder in page])
        changed: dict[str, dict[str, Any]] = {}
        for holder in page:
            config = wanted[holder.device]
            if config_digest(config) != config_digest(holder.config or {}):
                concerned.add(holder, config)
                changed[holder.device] = config
        for candidate in await beside(connection, module, changed):
            concerned.pairs.add(candidate, changed[candidate.device])
    return concerned


async def under_way(connection: AsyncConnection, module: str) -> str:
    """The rollout of the module that carries a configuration and has not ended; empty where there is none."""
    query = select(rollouts.c.id).where(
        rollouts.c.module == module, rollouts.c.config > 0, rollouts.c.state.in_(UNDER_WAY)
    )
    return (await connection.execute(query.limit(1))).scalar_one_or_none() or ""


def _build_of(module: str) -> Select[Any]:
    return select(modules.c.name).where(modules.c.name == module).limit(1)


async def require_module(connection: AsyncConnection, module: str) -> None:
    known = re.fullmatch(NAME_PATTERN, module)
    if known is None or (await connection.execute(_build_of(module))).first() is None:
        raise NotFound("module-not-found", f"no module {module[:63]}; build it first", name=module[:63])


def _target(change: ConfigurationChange) -> str:
    """The devices for which something may change."""
    if change.layer is not None and change.layer.device:
        return f"id = {change.layer.device}"
    return change.layer.target if change.layer is not None and change.layer.target else "all"


def _planned(module: str, target: str, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the rollout. Raises BadRequest `plan-invalid`."""
    taken = sorted({"module", "version", "target", "config"} & asked.keys())
    if taken:
        raise BadRequest("plan-invalid", f"rollout: {', '.join(taken)} is not yours to say here; nothing was changed")
    planned = {"start": True, **asked, "module": module, "version": 0, "target": target}
    _new_rollout({**planned, "config": 1}).plan()
    return planned


def _new_rollout(said: Mapping[str, Any]) -> NewRollout:
    try:
        return msgspec.convert(said, NewRollout)
    except msgspec.ValidationError as error:
        raise BadRequest("plan-invalid", f"rollout: {error}; nothing was changed") from error
