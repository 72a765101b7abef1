"""Labels meet samples: the outcomes of a prediction id, made anew from all that is here of it.

Called in the transaction that brought a label (`desk`) or a sample (`monitoring.ingest`), so nothing is joined late,
lost or counted twice, whatever came first. An outcome outlives its sample: then it is scored again from what it keeps.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import Row, bindparam, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.labels import book
from cloud_hub.labels.answers import Answer, pack_scores, read_answer, score, tensors_of, unpack_scores
from cloud_hub.labels.book import Label
from cloud_hub.labels.known import KnownOutputs
from cloud_hub.labels.match import Made, Winner, winners
from cloud_hub.labels.outputs import Output
from cloud_hub.store.engine import among
from cloud_hub.store.tables import labels, outcomes, samples
from modules.errors import ModuleError
from modules.messages import decode_sample

ASKED: Final = "asked"  # samples that somebody asked for stand for nothing but themselves
DAY_S: Final = 86_400.0
_PIECE: Final = 500
_Kept = dict[tuple[str, str, str, str], Row[Any]]  # outcomes by prediction, device, manifest and output


@dataclass
class Joined:
    """What came of it: builds with other outcomes than before, and by label id why it fits nothing."""

    manifests: set[str] = field(default_factory=set)
    unusable: dict[int, str] = field(default_factory=dict)


async def find_made(
    connection: AsyncConnection, prediction_ids: Collection[str], devices: Collection[str] | None = None
) -> dict[str, list[Made]]:
    """The predictions of these ids that are here, sampled, or scored before their sample was removed.

    With `devices` those of these devices only, which is all that matters where every label names its device.
    """
    found: dict[tuple[str, str, str], Made] = {}
    for table in (outcomes, samples):
        columns = [table.c.prediction_id, table.c.device, table.c.module, table.c.manifest_sha256]
        query = select(
            *columns,
            func.min(table.c.at).label("first"),
            func.max(table.c.at).label("last"),
            func.min(table.c.id).label("number"),
        ).where(among(table.c.prediction_id, set(prediction_ids)), table.c.stratum != ASKED)
        if devices is not None:
            query = query.where(among(table.c.device, devices))
        for row in await connection.execute(query.group_by(*columns)):
            key = (row.prediction_id, row.device, row.manifest_sha256)
            before = found.get(key)
            repeated = row.first != row.last or (before is not None and before.at != row.first)
            number = row.number if table is samples else None
            found[key] = Made(row.prediction_id, row.device, row.module, key[2], row.first, number, repeated)
    by_id: defaultdict[str, list[Made]] = defaultdict(list)
    for key in sorted(found):
        by_id[key[0]].append(found[key])
    return dict(by_id)


async def made_of(connection: AsyncConnection, devices_by_id: Mapping[str, Collection[str]]) -> dict[str, list[Made]]:
    """The predictions that labels speak of: by id, of the devices that are named, of all where "" is among them."""
    anybody = [one for one, devices in devices_by_id.items() if "" in devices]
    named = {device for devices in devices_by_id.values() for device in devices if "" not in devices}
    found = await find_made(connection, anybody) if anybody else {}
    if others := devices_by_id.keys() - set(anybody):
        found |= await find_made(connection, others, named)
    return found


async def rejoin(
    connection: AsyncConnection,
    prediction_ids: Collection[str],
    devices: Collection[str] | None,
    known_outputs: KnownOutputs,
    now: float,
    made: Mapping[str, list[Made]] | None = None,
) -> Joined:
    """Make the outcomes of these ids on these devices (None: any) what samples and labels say now.

    Call inside the writing transaction that brought the samples or the labels. `made`, if it is known already, is all
    predictions of these ids on any device.
    """
    current = await book.current_labels(connection, prediction_ids, devices)
    if devices is not None and (
        open_ids := [one for one, group in current.items() if any(not label.device for label in group)]
    ):
        current |= await book.current_labels(connection, open_ids)  # they may be of any device, so all are weighed
    joined = Joined()
    if not current:
        return joined
    if made is None:
        made = await made_of(connection, {one: {label.device for label in group} for one, group in current.items()})
    known = await known_outputs.of({one.manifest_sha256 for group in made.values() for one in group})
    best: dict[tuple[Made, str], Winner] = {}
    made = {prediction_id: made[prediction_id] for prediction_id in current if prediction_id in made}
    for prediction_id, group in made.items():
        best |= winners(
            current[prediction_id], group, known, lambda label, error: joined.unusable.update({label.id: error.key})
        )
    kept = await _kept(connection, made)
    rows = await _score(connection, best, kept, joined, now)
    await _replace(connection, kept, rows, joined)
    await _mark(connection, current, made, joined)
    return joined


async def _kept(connection: AsyncConnection, made: Mapping[str, Collection[Made]]) -> _Kept:
    """The outcomes that there are of these predictions."""
    concerned = {(one.prediction_id, one.device) for group in made.values() for one in group}
    if not concerned:
        return {}
    query = select(outcomes).where(
        among(outcomes.c.prediction_id, made.keys()), among(outcomes.c.device, {device for _, device in concerned})
    )
    return {
        (row.prediction_id, row.device, row.manifest_sha256, row.output): row
        for row in await connection.execute(query)
        if (row.prediction_id, row.device) in concerned
    }


async def _score(
    connection: AsyncConnection, best: dict[tuple[Made, str], Winner], kept: _Kept, joined: Joined, now: float
) -> list[dict[str, Any]]:
    bodies = await _bodies(connection, {made.sample for made, _ in best if made.sample is not None})
    rows: list[dict[str, Any]] = []
    silent: set[int] = set()
    answered: set[int] = set()
    for (made, name), winner in best.items():
        old = kept.get((made.prediction_id, made.device, made.manifest_sha256, name))
        source = bodies.get(made.sample) if made.sample is not None else None
        answer = _answer(winner.part.output, source, old)
        (silent if answer is None else answered).add(winner.label.id)
        if answer is None:
            continue
        rows.append(_outcome(made, winner, answer, source if source is not None else old, now))
    joined.unusable |= dict.fromkeys(silent - answered, "no-answer")
    return rows


def _answer(output: Output, sample: Row[Any] | None, old: Row[Any] | None) -> Answer | None:
    if sample is not None:
        try:
            return read_answer(output, tensors_of(decode_sample(sample.body)))
        except (ModuleError, ValueError):
            return None  # stored, and yet not readable: it answers nothing
    if old is None or (output.kind == "class" and not output.classes):
        return None
    return Answer(old.predicted, old.confidence, unpack_scores(old.scores))


def _outcome(made: Made, winner: Winner, answer: Answer, origin: Row[Any] | None, now: float) -> dict[str, Any]:
    """`origin` is the sample, or the outcome that was made of it: whoever answered came from one of them."""
    output, value, truth = winner.part
    result = score(output, answer, truth, value)
    stratum, share = (origin.stratum, origin.probability) if origin is not None else ("", 1.0)
    return {
        "prediction_id": made.prediction_id,
        "device": made.device,
        "module": made.module,
        "manifest_sha256": made.manifest_sha256,
        "output": output.name,
        "at": made.at,
        "day": int(made.at // DAY_S),
        "joined_at": now,
        "stratum": stratum,
        "probability": share,
        "weight": winner.label.weight / share,
        "kind": output.kind,
        "predicted": answer.predicted,
        "truth": truth,
        "error": result.error,
        "confidence": answer.confidence,
        "bin": result.bin,
        "cell": result.cell,
        "log_loss": result.log_loss,
        "brier": result.brier,
        "scores": pack_scores(answer.scores),
    }


async def _bodies(connection: AsyncConnection, wanted: Iterable[int]) -> dict[int, Row[Any]]:
    numbers = sorted(wanted)
    found: dict[int, Row[Any]] = {}
    for start in range(0, len(numbers), _PIECE):
        query = select(samples.c.id, samples.c.stratum, samples.c.probability, samples.c.body)
        piece = numbers[start : start + _PIECE]
        found |= {row.id: row for row in await connection.execute(query.where(samples.c.id.in_(piece)))}
    return found


async def _replace(connection: AsyncConnection, kept: _Kept, rows: list[dict[str, Any]], joined: Joined) -> None:
    """Rows that would say the same again stay as they are, with the time at which they were joined."""
    same: set[int] = set()
    fresh: list[dict[str, Any]] = []
    for row in rows:
        old = kept.get((row["prediction_id"], row["device"], row["manifest_sha256"], row["output"]))
        if old is not None and all(getattr(old, name) == row[name] for name in row if name != "joined_at"):
            same.add(old.id)
        else:
            fresh.append(row)
            joined.manifests.add(row["manifest_sha256"])
    gone = [row for row in kept.values() if row.id not in same]
    joined.manifests |= {row.manifest_sha256 for row in gone}
    for start in range(0, len(gone), _PIECE):
        piece = [row.id for row in gone[start : start + _PIECE]]
        await connection.execute(delete(outcomes).where(outcomes.c.id.in_(piece)))
    if fresh:
        await connection.execute(insert(outcomes), fresh)


async def _mark(
    connection: AsyncConnection, current: Mapping[str, list[Label]], made: Mapping[str, list[Made]], joined: Joined
) -> None:
    """How each label stands."""
    changes: list[dict[str, Any]] = []
    for prediction_id, group in current.items():
        for label in group:
            here = any(label.speaks_of(one.device, one.module) for one in made.get(prediction_id, ()))
            reason = joined.unusable.get(label.id, "")
            state = "unusable" if reason else "joined" if here else "waiting"
            if (label.state, label.reason) != (state, reason):
                changes.append({"number": label.id, "new_state": state, "new_reason": reason})
    if changes:
        statement = (
            update(labels)
            .where(labels.c.id == bindparam("number"))
            .values(state=bindparam("new_state"), reason=bindparam("new_reason"))
        )
        await connection.execute(statement, changes)
