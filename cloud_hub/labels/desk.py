"""The desk where labels come in: checked, kept or refused row by row, and joined in the same transaction.

A row that is sent again changes nothing, so an import that was cut off is simply done again. Called by `api.labels`;
`joined` is called by `monitoring.ingest` for samples whose labels were here first.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
from sqlalchemy import bindparam, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.clock import Clock
from cloud_hub.errors import BadRequest
from cloud_hub.events import Events
from cloud_hub.labels import book, join
from cloud_hub.labels.book import Label, Place
from cloud_hub.labels.known import KnownOutputs
from cloud_hub.labels.match import Made, parts_of, speaks_of
from cloud_hub.labels.outputs import LabelError
from cloud_hub.labels.rows import LabelQuery, LabelsTaken, NewLabel, RefusedLabel, check_row
from cloud_hub.store.engine import Store, among
from cloud_hub.store.tables import labels, modules

STATES: Final = ("waiting", "joined", "unusable")


@dataclass
class _Pile:
    """Rows of one batch, sorted into what they become. `current` is what counts at each place, as the batch goes."""

    current: dict[Place, Label]
    fresh: list[dict[str, Any]] = field(default_factory=list)
    replaced: set[int] = field(default_factory=set)
    confirmed: dict[int, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1


class Labels:
    """`on_joined` is called after a commit with the builds that have other outcomes than before; it must not block."""

    def __init__(
        self,
        store: Store,
        events: Events,
        known: KnownOutputs,
        clock: Clock,
        on_joined: Callable[[Collection[str]], None] = lambda _: None,
    ) -> None:
        self._store, self._events, self._known, self._clock = store, events, known, clock
        self._on_joined = on_joined

    async def take(
        self, rows: Collection[NewLabel], author: str, dry_run: bool = False, devices: Collection[str] | None = None
    ) -> LabelsTaken:
        """Keep the rows that can be kept, and say why not the others. With `devices` only labels of these are taken."""
        now = self._clock()
        refused: dict[int, LabelError] = {}
        good: dict[int, NewLabel] = {}
        for number, row in enumerate(rows):
            try:
                check_row(row, now)
                _check_scope(row, devices)
                good[number] = row
            except LabelError as error:
                refused[number] = error
        async with self._store.write() as connection:
            transaction = await connection.begin_nested()
            taken, manifests = await self._keep(connection, good, refused, author, now)
            if dry_run:
                await transaction.rollback()
            else:
                await transaction.commit()
                await self._record(connection, author, taken)
        if manifests and not dry_run:
            self._on_joined(manifests)
        problems = (RefusedLabel(n, error.key, str(error)) for n, error in sorted(refused.items()))
        return msgspec.structs.replace(taken, refused=tuple(problems))

    async def joined(self, connection: AsyncConnection, samples: Collection[tuple[str, str]]) -> set[str]:
        """Join samples, by device and prediction id, that have just been stored in this transaction.

        The builds that have other outcomes than before: `tell` them once the transaction is committed.
        """
        ids = await book.labelled(connection, {prediction_id for _, prediction_id in samples})
        if not ids:
            return set()
        devices = {device for device, prediction_id in samples if prediction_id in ids}
        return (await join.rejoin(connection, ids, devices, self._known, self._clock())).manifests

    def tell(self, manifests: Collection[str]) -> None:
        """The transaction in which `joined` was called is committed."""
        if manifests:
            self._on_joined(manifests)

    async def page(self, query: LabelQuery, devices: Collection[str] | None = None) -> list[Label]:
        """In the order in which they came; with `devices` only labels that name one of them.

        Raises BadRequest `query-invalid`.
        """
        if query.state not in ("", *STATES):
            raise BadRequest("query-invalid", f"state: expected one of {', '.join(STATES)}, got {query.state[:40]!r}")
        conditions = [labels.c.id > query.after]
        asked = {name: getattr(query, name) for name in ("prediction_id", "device", "module", "state")}
        conditions += [labels.c[name] == value for name, value in asked.items() if value]
        if not query.history:
            conditions.append(labels.c.replaced_at.is_(None))
        if devices is not None:
            conditions.append(among(labels.c.device, devices))
        statement = select(labels).where(*conditions).order_by(labels.c.id).limit(query.limit)
        async with self._store.read() as connection:
            return [book.label_of(row) for row in await connection.execute(statement)]

    async def _keep(
        self,
        connection: AsyncConnection,
        good: dict[int, NewLabel],
        refused: dict[int, LabelError],
        author: str,
        now: float,
    ) -> tuple[LabelsTaken, set[str]]:
        devices = {row.device for row in good.values()}
        named = None if "" in devices else devices
        made = await self._made(connection, good.values())
        known = await self._known.of({one.manifest_sha256 for group in made.values() for one in group})
        ids = {row.prediction_id for row in good.values()}
        before = await book.current_labels(connection, ids, named)
        modules_here = await _modules(connection, {row.module for row in good.values()})
        modules_here |= {one.module for group in made.values() for one in group}
        pile = _Pile({Place.of(label): label for group in before.values() for label in group})
        for number, row in good.items():
            group = made.get(row.prediction_id, [])
            try:
                _check_module(row, modules_here)
                parts_of(row, row.label, group, known)
            except LabelError as error:
                refused[number] = error
                continue
            _sort(pile, row, any(speaks_of(row, one) for one in group), (author, now))
        await _write(connection, pile, now)
        ids = {row.prediction_id for number, row in good.items() if number not in refused}
        # Also where the same was only said again: of two labels for one output the newer counts.
        everybody = all(not row.device for row in good.values())
        joined = await join.rejoin(connection, ids, named, self._known, now, made if everybody else None)
        return msgspec.convert(pile.counts, LabelsTaken), joined.manifests

    async def _made(self, connection: AsyncConnection, rows: Collection[NewLabel]) -> dict[str, list[Made]]:
        devices_by_id: dict[str, set[str]] = {}
        for row in rows:
            devices_by_id.setdefault(row.prediction_id, set()).add(row.device)
        return await join.made_of(connection, devices_by_id)

    async def _record(self, connection: AsyncConnection, author: str, taken: LabelsTaken) -> None:
        counts = {name: getattr(taken, name) for name in ("accepted", "waiting", "corrected", "older")}
        if any(counts.values()):
            await self._events.record(connection, "labels.imported", author, "labels", **counts)


def _check_scope(row: NewLabel, devices: Collection[str] | None) -> None:
    if devices is None:
        return
    if not row.device:
        raise LabelError("scope-needs-device", "your scope is not every device: name the device")
    if row.device not in devices:
        raise LabelError("device-not-found", f"no device {row.device[:63]}")


async def _modules(connection: AsyncConnection, names: Collection[str]) -> set[str]:
    """Those of the names that a module has."""
    return set(await connection.scalars(select(modules.c.name).where(among(modules.c.name, names)).distinct()))


def _check_module(row: NewLabel, known: Collection[str]) -> None:
    """A label of a module that is not there would wait for ever."""
    if row.module and row.module not in known:
        raise LabelError("module-not-found", f"no module {row.module} on this hub")


def _sort(pile: _Pile, row: NewLabel, here: bool, by: tuple[str, float]) -> None:
    """Take one row: new, a correction, known already, or older than what counts."""
    author, now = by
    at = now if row.at is None else row.at
    place = Place(row.prediction_id, row.device, row.module, row.output)
    old = pile.current.get(place)
    if old is not None and _same(old, row):
        if at > old.at:
            _confirm(pile, old, at)
        return pile.count("unchanged")
    older = old is not None and at < old.at
    label = Label(
        id=-1 - len(pile.fresh), prediction_id=row.prediction_id, device=row.device, module=row.module,
        output=row.output, value=row.label, weight=row.weight, at=at, received_at=now, author=author,
        replaced_at=now if older else None, state="joined" if here else "waiting", reason="",
    )  # fmt: skip
    fresh = msgspec.structs.asdict(label)
    pile.fresh.append(fresh)
    if older:
        return pile.count("older")
    pile.current[place] = label
    if old is None:
        return pile.count("accepted" if here else "waiting")
    if old.id < 0:
        pile.fresh[-1 - old.id]["replaced_at"] = now
    else:
        pile.replaced.add(old.id)
    return pile.count("corrected")


def _same(old: Label, row: NewLabel) -> bool:
    """2 and 2.0 are the same label, 1 and true are not."""
    kinds = isinstance(old.value, bool), isinstance(row.label, bool)
    return (old.value, old.weight) == (row.label, row.weight) and kinds[0] == kinds[1]


def _confirm(pile: _Pile, old: Label, at: float) -> None:
    """The same was said again, later: that is its time now."""
    pile.current[Place.of(old)] = msgspec.structs.replace(old, at=at)
    if old.id < 0:
        pile.fresh[-1 - old.id]["at"] = at
    else:
        pile.confirmed[old.id] = at


async def _write(connection: AsyncConnection, pile: _Pile, now: float) -> None:
    if pile.replaced:
        numbers = sorted(pile.replaced)
        await connection.execute(update(labels).where(labels.c.id.in_(numbers)).values(replaced_at=now))
    if pile.confirmed:
        statement = update(labels).where(labels.c.id == bindparam("number")).values(at=bindparam("said"))
        await connection.execute(statement, [{"number": n, "said": at} for n, at in pile.confirmed.items()])
    if pile.fresh:
        rows = [{name: value for name, value in row.items() if name != "id"} for row in pile.fresh]
        await connection.execute(insert(labels), rows)
