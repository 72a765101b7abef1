"""How strictly a device can hold a module: four levels, in order. What each one needs is in `agent.sandbox.level`.

A word on the wire and in files, an order in code. Used by device profiles, by what modules require and by the agent's
settings.
"""

from __future__ import annotations

from enum import Enum


class Confinement(Enum):
    """`unknown` is below all: as a requirement it asks for nothing, as an offer it refuses nothing."""

    UNKNOWN = ""
    NONE = "none"
    PROCESS = "process"
    CONFINED = "confined"
    ISOLATED = "isolated"

    @property
    def rank(self) -> int:
        return _ORDER.index(self)

    def reaches(self, wanted: Confinement) -> bool:
        """Whether this level is at least `wanted`."""
        return self.rank >= wanted.rank

    @classmethod
    def of(cls, word: str) -> Confinement:
        """The level of a word that came from elsewhere; one that is not known here is unknown."""
        try:
            return cls(word)
        except ValueError:
            return cls.UNKNOWN


_ORDER = tuple(Confinement)
