"""How the confidences of all predictions were distributed, by day: read from the looks, of which every row is part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.labels.join import DAY_S
from cloud_hub.labels.outputs import Output
from cloud_hub.monitoring.integers import unpack
from cloud_hub.monitoring.layout import Layout
from cloud_hub.store.tables import looks
from modules.windows import Numeric

MAX_LOOKS: Final = 4000  # of one answer: 5 months of hours
_PAGE: Final = 250
FloatArray = np.ndarray[Any, np.dtype[np.float64]]


def cells_of(layout: Layout, output: Output) -> slice | None:
    """Where in a look the cells of the output's confidence stand; None where it is not counted."""
    for start, feature in zip(layout.starts, layout.features, strict=False):
        if isinstance(feature, Numeric) and feature.take == "max" and feature.tensor == output.tensor:
            return slice(int(start), int(start) + feature.cells)
    return None


async def counted(
    connection: AsyncConnection, manifests: Sequence[str], scope: str, cells: slice, since: float, until: float
) -> dict[int, FloatArray]:
    """Rows per day and cell, from the latest MAX_LOOKS looks; a look belongs to the day in which it began.

    Without looks that hold private windows: shares of counts with noise, below zero some of them, estimate nothing.
    """
    found: dict[int, FloatArray] = {}
    query = (
        select(looks.c.start, looks.c.counts)
        .where(
            looks.c.manifest_sha256.in_(manifests), looks.c.device == scope,
            looks.c.start >= since, looks.c.start < until, looks.c.noise == 0,
        )
        .order_by(looks.c.start.desc(), looks.c.manifest_sha256)
        .limit(_PAGE)
    )  # fmt: skip
    for page in range(0, MAX_LOOKS, _PAGE):
        rows = (await connection.execute(query.offset(page))).all()
        for row in rows:
            here = unpack(row.counts)[cells].astype(np.float64)
            day = int(row.start // DAY_S)
            found[day] = found[day] + here if day in found else here
        if len(rows) < _PAGE:
            break
    return found
