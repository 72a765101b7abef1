"""When a delivery that failed is tried again, and when it is dead. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from cloud_hub.outward.sending import Answer, Meaning

REFUSALS: Final = 5  # of one message, after which it is dead


@dataclass(frozen=True)
class Pace:
    """Seconds. After the first failure about `first_s`, twice that after each further one, never above `last_s`."""

    first_s: float = 5.0
    last_s: float = 3600.0
    retry_s: float = 86_400.0
    give_up_s: float = 5 * 86_400.0

    def delay_s(self, failures: int, asked_s: float, random: Callable[[], float]) -> float:
        """Until the next attempt, after so many `failures` in a row; the endpoint asked for `asked_s` at least."""
        full = min(self.first_s * 2.0 ** min(failures - 1, 40), self.last_s)
        return max(full * (0.5 + random() / 2), min(asked_s, self.last_s))

    def is_dead(self, answer: Answer, attempts: int, first_at: float, now: float) -> bool:
        """Whether the event is not sent again by itself, after `attempts` of which the first was at `first_at`."""
        refused = answer.meaning is Meaning.REFUSED and attempts >= REFUSALS
        return refused or now - first_at >= self.retry_s


DEFAULT_PACE: Final = Pace()
