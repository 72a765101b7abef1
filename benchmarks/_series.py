"""Real series with a change in them, each with a model and the rows that it was made with.

- wine: scikit-learn's wines by 13 measurements. First wines of two cultivars, drawn with replacement, then of the
  third: the model never saw one.
- occupancy: an office's temperature, humidity, light and CO2, every 16 minutes (509 rows, in river). All annotators see
  changes at about row 234 (the weekend begins: no day's light, no people) and at 416 (Monday). Every second row before
  the first of them is what the model was made with; the stream is the others and every second row from there on. Its
  rows depend on each other and go with the time of day: a look of three hours sees a night and calls it a change, which
  some annotators do as well; a look of a day does not.
"""

from __future__ import annotations

import csv
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np

WEEKEND = 234
INPUT = "X"


@dataclass(frozen=True)
class Series:
    """`rows` come in looks of `per_look`; from row `change` on they are of another kind than `reference`."""

    name: str
    onnx: bytes
    reference: np.ndarray
    rows: np.ndarray
    change: int
    per_look: int

    @property
    def looks(self) -> list[np.ndarray]:
        """The rows of each look, in order; a rest that fills none is left out."""
        return [self.rows[i : i + self.per_look] for i in range(0, len(self.rows) - self.per_look + 1, self.per_look)]

    @property
    def looks_before(self) -> int:
        return self.change // self.per_look


def wine(seed: int = 0, before: int = 40, after: int = 15, per_look: int = 20) -> Series:
    """`before` and `after` are looks."""
    from sklearn.datasets import load_wine

    features, kinds = load_wine(return_X_y=True)
    rng = np.random.default_rng(seed)
    known = features[kinds < 2]
    reference = rng.permutation(len(known))[:90]
    stream = [
        known[rng.integers(0, len(known), before * per_look)],
        features[kinds == 2][rng.integers(0, int((kinds == 2).sum()), after * per_look)],
    ]
    onnx = _classifier(known, kinds[kinds < 2])
    rows = np.concatenate(stream).astype(np.float32)
    return Series(f"wine-{seed}", onnx, known[reference].astype(np.float32), rows, before * per_look, per_look)


DAY, THREE_HOURS = 45, 6  # rows of the stream


def occupancy(name: str, per_look: int) -> Series:
    spec = importlib.util.find_spec("river")
    if spec is None or spec.origin is None:
        raise SystemExit("this needs river, which is among the development requirements")
    path = Path(spec.origin).parent / "drift" / "datasets" / "occupancy.csv"
    with path.open() as lines:
        rows = np.array([[float(row[f"V{i}"]) for i in range(1, 5)] for row in csv.DictReader(lines)], np.float32)
    onnx = _classifier(rows[:WEEKEND], (rows[:WEEKEND, 2] > 100).astype(int))
    stream = rows[1::2]
    return Series(name, onnx, rows[0:WEEKEND:2], stream, WEEKEND // 2, per_look)


def _classifier(features: np.ndarray, kinds: np.ndarray) -> bytes:
    from skl2onnx import to_onnx
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(features.astype(np.float32), kinds)
    options = {id(model): {"zipmap": False}}
    data: bytes = to_onnx(model, features[:1].astype(np.float32), options=options, target_opset=17).SerializeToString()
    return data
