"""Rows per second that whylogs and DataSketches profile: `python count.py PEER BATCH FEATURES SECONDS`.

In the peers' own environment. Prints one JSON object: `rows_per_s`, and `bytes` of a profile of 1,000 rows.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np


class Whylogs:
    """Row by row as a dict, which is its form for one row; more rows as a data frame, which is its quickest."""

    def __init__(self, batches: list[Any]) -> None:
        import pandas as pd
        from whylogs.core import DatasetProfile

        self._new = DatasetProfile
        names = [f"f{i}" for i in range(batches[0].shape[1])]
        self._one = len(batches[0]) == 1
        self.given = [
            dict(zip(names, batch[0].tolist(), strict=True)) if self._one else pd.DataFrame(batch, columns=names)
            for batch in batches
        ]
        self.begin()

    def begin(self) -> None:
        self._profile = self._new()

    def track(self, given: Any) -> None:
        self._profile.track(row=given) if self._one else self._profile.track(pandas=given)

    def size(self) -> int:
        return len(self._profile.view().serialize())


class Kll:
    """All features in one object, whose update takes arrays."""

    def __init__(self, batches: list[Any]) -> None:
        from datasketches import vector_of_kll_floats_sketches

        self._new: Callable[[], Any] = lambda: vector_of_kll_floats_sketches(200, batches[0].shape[1])
        self.given = batches
        self.begin()

    def begin(self) -> None:
        self._sketches = self._new()

    def track(self, given: Any) -> None:
        self._sketches.update(given)

    def size(self) -> int:
        return sum(map(len, self._sketches.serialize()))


def main() -> None:
    peer, batch, features, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    rng = np.random.default_rng(0)
    count = max(4, 4096 // batch)
    batches = [rng.normal(size=(batch, features)).astype(np.float32) for _ in range(count)]
    profiled = {"whylogs": Whylogs, "kll": Kll}[peer](batches)
    rates = [_rate(profiled, batch, seconds) for _ in range(3)]
    print(json.dumps({"rows_per_s": sorted(rates)[1], "bytes": _size(profiled, batch)}))


def _rate(profiled: Any, batch: int, seconds: float) -> float:
    profiled.begin()
    rows, started = 0, time.perf_counter()
    while True:
        for given in profiled.given:
            profiled.track(given)
            rows += batch
            took = time.perf_counter() - started
            if took >= seconds:
                return rows / took


def _size(profiled: Any, batch: int) -> int:
    profiled.begin()
    for number in range(max(1, 1000 // batch)):
        profiled.track(profiled.given[number % len(profiled.given)])
    return profiled.size()


if __name__ == "__main__":
    main()
