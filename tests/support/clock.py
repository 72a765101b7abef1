"""A clock for tests: it stands still until the test moves it."""

from dataclasses import dataclass


@dataclass
class SetClock:
    """A clock that stands still until the test moves it."""

    now: float = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds
