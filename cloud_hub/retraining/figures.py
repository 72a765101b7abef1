"""The figures of one model on labelled rows: accuracy, recall, F1, mean error. Pure; rows are weighted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cloud_hub.retraining.bounds import FloatArray, IntArray, weighted_mean
from cloud_hub.retraining.criteria import Metric


@dataclass(frozen=True)
class Scored:
    """Rows with what two models answered. Classes are places (float), numbers themselves; errors as `labels.answers`:
    0 or 1 for a class, predicted minus truth for a number. `groups` are values of columns by name, one per row.
    """

    weights: FloatArray
    truth: FloatArray
    candidate: FloatArray
    champion: FloatArray
    candidate_errors: FloatArray
    champion_errors: FloatArray
    classes: tuple[str, ...]
    is_class: bool
    groups: Mapping[str, tuple[str, ...]]

    def __len__(self) -> int:
        return len(self.weights)

    def only(self, rows: IntArray) -> Scored:
        return Scored(
            self.weights[rows], self.truth[rows], self.candidate[rows], self.champion[rows],
            self.candidate_errors[rows], self.champion_errors[rows], self.classes, self.is_class,
            {name: tuple(values[row] for row in rows) for name, values in self.groups.items()},
        )  # fmt: skip

    def figure(self, metric: Metric, champion: bool) -> float:
        answers = self.champion if champion else self.candidate
        errors = self.champion_errors if champion else self.candidate_errors
        if metric in ("accuracy", "recall"):
            return weighted_mean(1.0 - errors, self.weights)
        if metric == "mae":
            return weighted_mean(np.abs(errors), self.weights)
        if metric == "rmse":
            return float(np.sqrt(weighted_mean(errors**2, self.weights)))
        return self._of_classes(metric, answers)

    def _of_classes(self, metric: Metric, answers: FloatArray) -> float:
        """The mean over the classes that there are."""
        found = []
        for place in np.unique(self.truth):
            true, said = self.truth == place, answers == place
            hit = float(self.weights[true & said].sum())
            recalled = hit / float(self.weights[true].sum())
            total = float(self.weights[true].sum() + self.weights[said].sum())
            found.append(recalled if metric == "balanced_accuracy" else 2 * hit / total)
        return float(np.mean(found)) if found else float("nan")
