"""References of model versions to data sets of this hub: dataset:NAME:VERSION@SHA256. Called by `registry` and `book`.

Other references are the publisher's own words, and nobody checks them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from sqlalchemy import String, cast, select
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.errors import Conflict, Unprocessable
from cloud_hub.store.tables import datasets, model_versions

OURS: Final = "dataset:"
_FORM: Final = re.compile(r"dataset:([a-z0-9][a-z0-9_-]{0,62}):([1-9][0-9]{0,8})@([0-9a-f]{64})")


async def check_references(connection: AsyncConnection, references: Iterable[str]) -> None:
    """Raises Unprocessable `dataset-unknown` for one that looks like ours and is not."""
    for text in references:
        if not text.startswith(OURS):
            continue
        match = _FORM.fullmatch(text)
        found = None
        if match is not None:
            here = (datasets.c.name == match[1], datasets.c.version == int(match[2]))
            found = (await connection.execute(select(datasets.c.digest).where(*here))).scalar_one_or_none()
        if match is None or found != match[3]:
            raise Unprocessable(
                "dataset-unknown",
                f"datasets: expected dataset:NAME:VERSION@SHA256 of a data set on this hub, got {text[:160]!r}; "
                "nothing was registered",
                dataset=text[:160],
            )


async def refuse_used(connection: AsyncConnection, name: str, version: int) -> None:
    """Raises Conflict `dataset-in-use` when a model version names it."""
    named = cast(model_versions.c.datasets, String).contains(f'"{OURS}{name}:{version}@', autoescape=True)
    query = select(model_versions.c.name, model_versions.c.version).where(named).limit(1)
    row = (await connection.execute(query)).first()
    if row is not None:
        raise Conflict(
            "dataset-in-use",
            f"data set {name}:{version} is what model {row.name}:{row.version} was trained on; delete the model first",
            model=f"{row.name}:{row.version}",
        )
