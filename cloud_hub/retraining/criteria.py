"""What a candidate must show, in the user's words: "accuracy >= champion - 0.01", "recall per class >= 0.6". Pure.

    METRIC[CLASS] [per class|device|GROUP COLUMN] >= NUMBER | champion [+ NUMBER | - NUMBER]

Metrics that are better when small (mae, rmse) take <=. What is compared is a bound that holds with the plan's
confidence, never the figure itself: a candidate that was lucky on few rows has a low bound. Used by `plan`, `judging`.
"""

from __future__ import annotations

import re
from typing import Final, Literal, cast

import msgspec

Metric = Literal["accuracy", "recall", "balanced_accuracy", "f1", "mae", "rmse"]
LOWER: Final = frozenset({"mae", "rmse"})
CLASSES: Final = frozenset({"accuracy", "recall", "balanced_accuracy", "f1"})
OVERALL: Final = frozenset({"balanced_accuracy", "f1"})  # of all classes at once
PER_CLASS: Final = "class"
_FORM: Final = re.compile(
    r"(?P<metric>[a-z_0-9]+)(?:\[(?P<label>[^\]]{1,100})\])?(?:\s+per\s+(?P<group>[A-Za-z0-9_.\[\]-]{1,200}))?"
    r"\s*(?P<sign>>=|>|<=|<)\s*"
    r"(?:(?P<champion>champion)(?:\s*(?P<way>[+-])\s*(?P<margin>[0-9.]+))?|(?P<bound>-?[0-9.]+))"
)


class Criterion(msgspec.Struct, frozen=True):
    """One of them. `bound` is a figure to reach, or with `champion` what the candidate may be away from the champion
    (positive: must be larger). `label` is the class of a recall; `group` a column, or class; each group must pass.
    """

    text: str
    metric: Metric
    champion: bool
    bound: float
    label: str = ""
    group: str = ""

    @property
    def lower_is_better(self) -> bool:
        return self.metric in LOWER


def parse_criterion(text: str) -> Criterion:
    """Raises ValueError with what was expected."""
    match = _FORM.fullmatch(text.strip())
    if match is None or match["metric"] not in CLASSES | LOWER:
        metrics = ", ".join(sorted(CLASSES | LOWER))
        raise _wrong(text, f'such as "accuracy >= champion - 0.01", of {metrics}')
    metric, label, group = match["metric"], match["label"] or "", match["group"] or ""
    if (match["sign"] in ("<", "<=")) != (metric in LOWER):
        raise _wrong(text, f"{metric} {'<=' if metric in LOWER else '>='}: smaller is better only for mae and rmse")
    if (metric == "recall") != bool(label or group == PER_CLASS):
        raise _wrong(text, "recall[CLASS], or recall per class; other metrics are of all classes")
    if label and group:
        raise _wrong(text, "a class or a group, not both")
    try:
        bound = float(match["bound"] or match["margin"] or 0.0)
    except ValueError:
        raise _wrong(text, "a number such as 0.01") from None
    signed = -bound if match["way"] == "-" else bound
    return Criterion(text.strip(), cast(Metric, metric), bool(match["champion"]), signed, label, group)


def _wrong(text: str, expected: str) -> ValueError:
    return ValueError(f"accept {text[:120]!r}: expected {expected}")
