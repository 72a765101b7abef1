"""Whether configurations satisfy the schema of the version that each device shall run, for any number of devices.

Devices are read in pages and only different pairs of build and configuration are kept, with how many devices have
them: a fleet has few. Called by `configurations`, outside of writing transactions, because a child process is asked.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
from sqlalchemy import ColumnElement, and_, literal, select
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.blobs import Blobs
from cloud_hub.builds import builds_of
from cloud_hub.configuration.resolving import main_only
from cloud_hub.configuration.schemas import Answer, Question, ask
from cloud_hub.desired import CANDIDATE
from cloud_hub.errors import Conflict
from cloud_hub.store.bulk import in_slices
from cloud_hub.store.engine import among
from cloud_hub.store.tables import assignments, devices, modules
from cloud_hub.words import counted
from modules.configuration import MAX_CONFIG_BYTES, check_config, config_digest
from modules.errors import ConfigurationError
from modules.manifest import decode_manifest

PAGE: Final = 1000
MAX_PAIRS: Final = 5000
MAX_REMEMBERED: Final = 20_000
SHOWN: Final = 5


@dataclass(frozen=True)
class Holder:
    """A device that shall have the module, and the build that it shall run."""

    device: str
    version: int
    profile: str
    manifest_sha256: str
    config: Mapping[str, Any] | None  # what it is directed to have; None where it does not have the module yet


class Unfit(msgspec.Struct, frozen=True):
    """Devices whose configuration does not satisfy their version's schema, in the same way."""

    version: int
    profile: str
    path: str
    why: str
    devices: int
    examples: tuple[str, ...]


@dataclass
class _Pair:
    version: int
    profile: str
    config: dict[str, Any]
    devices: int = 0
    examples: list[str] = field(default_factory=list)


class Pairs:
    """Builds with configurations, each different one once."""

    def __init__(self) -> None:
        self._pairs: dict[tuple[str, str], _Pair] = {}

    def add(self, holder: Holder, config: dict[str, Any]) -> None:
        """Raises Conflict `configuration-too-varied`."""
        key = holder.manifest_sha256, config_digest(config)
        pair = self._pairs.get(key)
        if pair is None:
            if len(self._pairs) >= MAX_PAIRS:
                text = f"expected at most {MAX_PAIRS} different configurations in the fleet; nothing was changed"
                raise Conflict("configuration-too-varied", text)
            pair = self._pairs[key] = _Pair(holder.version, holder.profile, config)
        pair.devices += 1
        if len(pair.examples) < SHOWN:
            pair.examples.append(holder.device)

    def items(self) -> Iterator[tuple[str, str, _Pair]]:
        """The digests of manifest and configuration, and what they are of."""
        for (manifest_sha256, config_sha256), pair in self._pairs.items():
            yield manifest_sha256, config_sha256, pair


class Fitting:
    """Asks which pairs do not fit. What has fitted is remembered: both halves of a pair are named by their digests."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self._fit: OrderedDict[tuple[str, str], None] = OrderedDict()

    async def require(self, module: str, pairs: Pairs) -> None:
        """Raises Conflict `configuration-unfit`, naming how many devices, and where; Unprocessable
        `schema-too-complex`.
        """
        asked: dict[str, list[tuple[str, _Pair]]] = {}
        found: list[Unfit] = []
        for manifest_sha256, config_sha256, pair in pairs.items():
            why = _no_configuration(pair.config)
            if why:
                found.append(_oversized(pair, why))
            elif (manifest_sha256, config_sha256) not in self._fit:
                asked.setdefault(manifest_sha256, []).append((config_sha256, pair))
        _refuse(module, found + await self._asked(asked))
        self._remember([(manifest, config) for manifest, some in asked.items() for config, _ in some])

    async def has_schema(self, connection: AsyncConnection, module: str, version: int) -> bool:
        """Whether any build of the version says what a configuration must be."""
        for manifest_sha256 in await builds_of(connection, module, version):
            if await _schema(self._blobs, manifest_sha256) is not None:
                return True
        return False

    async def _asked(self, asked: Mapping[str, Sequence[tuple[str, _Pair]]]) -> list[Unfit]:
        """The first failure of each pair that does not fit."""
        questions: list[tuple[Question, list[_Pair]]] = []
        for manifest_sha256, some in sorted(asked.items()):
            schema = await _schema(self._blobs, manifest_sha256)
            if schema is not None:
                pairs = [pair for _, pair in some]
                questions.append((Question(schema, tuple(pair.config for pair in pairs)), pairs))
        answers = await ask([question for question, _ in questions]) if questions else []
        return [
            failed for (_, pairs), answer in zip(questions, answers, strict=True) for failed in _failed(pairs, answer)
        ]

    def _remember(self, fitting: Sequence[tuple[str, str]]) -> None:
        self._fit.update(dict.fromkeys(fitting))
        while len(self._fit) > MAX_REMEMBERED:
            self._fit.popitem(last=False)


async def holders(connection: AsyncConnection, module: str) -> AsyncIterator[Sequence[Holder]]:
    """Devices that shall have the module, by id, a page at a time."""
    after = ""
    built = and_(
        modules.c.name == assignments.c.module,
        modules.c.version == assignments.c.version,
        modules.c.profile == assignments.c.profile,
    )
    columns = (assignments.c.device, assignments.c.version, assignments.c.profile, assignments.c.config)
    query = (
        select(*columns, modules.c.manifest_sha256)
        .select_from(assignments.join(devices, devices.c.id == assignments.c.device).join(modules, built))
        .where(assignments.c.module == module, devices.c.retired_at.is_(None), *main_only())
        .order_by(assignments.c.device)
        .limit(PAGE)
    )
    while True:
        rows = (await connection.execute(query.where(assignments.c.device > after))).all()
        yield [Holder(row.device, row.version, row.profile, row.manifest_sha256, row.config) for row in rows]
        if len(rows) < PAGE:
            return
        after = rows[-1].device


async def takers(
    connection: AsyncConnection, module: str, version: int, wanted: Sequence[str]
) -> AsyncIterator[Sequence[Holder]]:
    """Of the devices those for which there is a build of the version (0: that have one assigned), and what they are
    directed to have now.
    """
    held = and_(assignments.c.device == devices.c.id, assignments.c.module == module, *main_only())
    number: ColumnElement[int] = literal(version) if version else assignments.c.version
    built = and_(modules.c.name == module, modules.c.version == number, modules.c.profile == devices.c.profile)
    query = select(devices.c.id, devices.c.profile, modules.c.version, modules.c.manifest_sha256, assignments.c.config)
    query = query.select_from(devices.outerjoin(assignments, held).join(modules, built))
    for some in in_slices(sorted(wanted)):
        rows = (await connection.execute(query.where(among(devices.c.id, some)))).all()
        yield [Holder(row.id, row.version, row.profile, row.manifest_sha256, row.config) for row in rows]


async def beside(connection: AsyncConnection, module: str, wanted: Collection[str]) -> list[Holder]:
    """The candidates on these devices: they get whatever configuration the main version beside them gets."""
    here = assignments.c
    build = and_(modules.c.name == here.module, modules.c.version == here.version, modules.c.profile == here.profile)
    query = select(here.device, here.version, here.profile, modules.c.manifest_sha256, here.config)
    query = query.select_from(assignments.join(modules, build))
    query = query.where(here.module == module, here.role == CANDIDATE)
    found: list[Holder] = []
    for some in in_slices(sorted(wanted)):
        rows = await connection.execute(query.where(among(here.device, some)))
        found += [Holder(row.device, row.version, row.profile, row.manifest_sha256, row.config) for row in rows]
    return found


def _refuse(module: str, found: Sequence[Unfit]) -> None:
    if not found:
        return
    total = sum(one.devices for one in found)
    shown = "; ".join(
        f"{one.path}: {one.why} ({one.devices} with version {one.version} for {one.profile}, such as "
        f"{', '.join(one.examples)})"
        for one in sorted(found, key=lambda one: -one.devices)[:SHOWN]
    )
    where = counted(total, "device")
    text = f"the configuration of {module} does not satisfy its schema on {where}: {shown}; nothing was changed"
    raise Conflict("configuration-unfit", text, module=module, devices=total, failures=msgspec.to_builtins(found[:50]))


async def _schema(blobs: Blobs, manifest_sha256: str) -> dict[str, Any] | None:
    schema = decode_manifest(await blobs.read(manifest_sha256)).config_schema
    return None if schema is msgspec.UNSET else msgspec.json.decode(schema, type=dict[str, Any])


def _no_configuration(config: dict[str, Any]) -> str:
    try:
        check_config(config)
    except ConfigurationError as error:
        return str(error)
    return ""


def _oversized(pair: _Pair, why: str) -> Unfit:
    text = f"{why}, once its parts are merged (at most {MAX_CONFIG_BYTES} bytes)"
    return Unfit(pair.version, pair.profile, "$", text, pair.devices, tuple(pair.examples))


def _failed(pairs: Sequence[_Pair], answer: Answer) -> list[Unfit]:
    return [
        Unfit(pair.version, pair.profile, failures[0].path, failures[0].why, pair.devices, tuple(pair.examples))
        for pair, failures in zip(pairs, answer.failures, strict=True)
        if failures
    ]
