"""Data sets as tables for a terminal. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import groupby

import msgspec
from rich.console import Group, RenderableType
from rich.text import Text

from cloud_hub.datasets.wishes import Dataset, NewDataset
from cloud_hub.operator.render import SHORT_DIGEST, card, size, table, when


def datasets(found: Sequence[Dataset]) -> RenderableType:
    rows = [
        (
            f"{one.name}:{one.version}",
            one.module,
            str(one.rows),
            str(one.labelled_rows),
            str(one.heldout_rows),
            one.digest[:SHORT_DIGEST],
            size(sum(file.size for file in one.files)),
            when(one.created_at),
        )
        for one in found
    ]
    titles = ("data set", "module", "rows", "labelled", "held out", "digest", "size", "built")
    return table(titles, rows, "no data sets")


def dataset(found: Dataset) -> RenderableType:
    facts = {
        "data set": f"{found.name}:{found.version}",
        "reference": found.reference,
        "module": found.module,
        "rows": f"{found.rows}, of which {found.labelled_rows} labelled and {found.heldout_rows} held out",
        "taken": "" if found.first_at is None else f"{when(found.first_at)} to {when(found.last_at or 0.0)}",
        "query": _asked(found.query),
        "retraining run": found.run,
        "built": f"{when(found.created_at)} by {found.author}",
    }
    files = [(file.path, size(file.size), file.sha256) for file in found.files]
    columns = _columns(found)
    return Group(
        card(facts),
        Text(""),
        table(("file", "size", "sha256"), files, "no files"),
        Text(""),
        table(("column", "type"), columns, "no columns"),
    )


def _columns(found: Dataset) -> list[tuple[str, str]]:
    """Elements of one tensor share a line."""
    rows: list[tuple[str, str]] = []
    for (_, kind), some in groupby(found.columns, lambda column: (column.name.partition("[")[0], column.type)):
        names = [column.name for column in some]
        rows.append((names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}, {len(names)} columns", kind))
    return rows


def _asked(query: NewDataset) -> str:
    """What was asked for, without what was left open."""
    plain = NewDataset(query.name, query.module)
    said = {field: value for field, value in msgspec.structs.asdict(query).items() if value != getattr(plain, field)}
    for field in ("since", "until"):  # as --since and --until take them, to the last digit: the same query again
        if field in said:
            said[field] = datetime.fromtimestamp(said[field], UTC).replace(tzinfo=None).isoformat()
    return ", ".join(f"{field} {value}" for field, value in said.items())
