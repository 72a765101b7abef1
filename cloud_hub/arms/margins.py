"""What is asked of a comparison: values that the API, the command line and rollouts share. Light to import."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from cloud_hub.bounds import AnyVersion, Version

LATEST_S: Final = 1e13


class Margins(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much worse is still as good: shares of requests, shares of answers, and how many times slower.

    `quality` is in the unit of the error: a share of wrong answers, or of the size of the labels' spread.
    """

    errors: float = 0.01
    refused: float = 0.01
    slower: float = 1.25
    quality: float = 0.02
    answers: float = 0.05

    def __post_init__(self) -> None:
        for name in ("errors", "refused", "quality", "answers"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected more than 0 and at most 1, got {getattr(self, name)}")
        if not 1 < self.slower <= 1000:
            raise ValueError(f"slower: expected more than 1 and at most 1000 times, got {self.slower}")


class ComparisonQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`baseline` 0 is the newest version below the candidate; zeros in `since` and `until` mean any time.

    The margins are those of `Margins`; `alpha` is the chance of any wrong word, at any time.
    """

    module: str
    candidate: Version
    baseline: AnyVersion = 0
    device: str = ""
    since: float = 0.0
    until: float = 0.0
    errors: float = Margins().errors
    refused: float = Margins().refused
    slower: float = Margins().slower
    quality: float = Margins().quality
    answers: float = Margins().answers
    alpha: Annotated[float, msgspec.Meta(gt=0, le=0.5)] = 0.05

    def __post_init__(self) -> None:
        for name in ("since", "until"):
            if not 0.0 <= getattr(self, name) <= LATEST_S:
                raise ValueError(f"{name}: expected seconds since the epoch up to {LATEST_S:g}")
        if self.until and self.until <= self.since:
            raise ValueError(f"until: expected a time after since ({self.since}), got {self.until}")
