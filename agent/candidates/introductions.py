"""Who runs of each module now, and who was introduced to whom. The parent's part of candidates: it makes a socket pair
for two workers, gives each its end, and is not asked again until one of them is another.

    a worker begins to serve     the other one, where there is one, and it get a connection
    share or mode change         the serving worker gets new terms; the connection stays
    a worker ends                its end of the connection closes, which the other one sees by itself

Called by `agent.runtimes.process`.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Protocol

from agent.candidates.tap import Tap
from agent.candidates.terms import Terms
from agent.installed import Installed

_logger = logging.getLogger(__name__)


class Worker(Protocol):
    """As far as it matters here."""

    exited: asyncio.Event


class _Guest:
    """A worker with its tap. `met` is the one that it has a connection with; `rests`: it is to be left alone."""

    def __init__(self, worker: Worker, tap: Tap, module: Installed) -> None:
        self.worker, self.tap, self.module = worker, tap, module
        self.serving = False
        self.rests = False
        self.met: _Guest | None = None


class Introductions:
    """Of all modules of this device."""

    def __init__(self) -> None:
        self._guests: list[_Guest] = []

    def expects(self, worker: Worker, tap: Tap, module: Installed) -> None:
        """A worker was made, and has inherited its end of `tap`."""
        self._guests.append(_Guest(worker, tap, module))

    def beside(self, worker: Worker) -> bool:
        """Whether it is a candidate."""
        guest = self._guest(worker)
        return guest is not None and guest.module.candidate

    def serves(self, worker: Worker) -> None:
        """From now on it may be introduced."""
        guest = self._guest(worker)
        if guest is not None:
            guest.serving = True
            self._introduce(guest.module.name)

    def changed(self, worker: Worker, module: Installed) -> None:
        """The same files under new wishes."""
        guest = self._guest(worker)
        if guest is not None:
            guest.module = module
            self._say_terms(module.name)

    def rest(self, worker: Worker, rests: bool) -> None:
        """A candidate that is to be left alone gets nothing, until it is not any more."""
        guest = self._guest(worker)
        if guest is not None and guest.rests != rests:
            guest.rests = rests
            self._say_terms(guest.module.name)

    def close(self) -> None:
        for guest in self._guests:
            guest.tap.close()
        self._guests.clear()

    def _introduce(self, name: str) -> None:
        main, candidate = self._latest(name, candidate=False), self._latest(name, candidate=True)
        if main is None or candidate is None or main.met is candidate:
            return
        try:
            one, other = socket.socketpair()
        except OSError as error:
            _logger.warning("a candidate is not fed", extra={"unit": name, "why": str(error)})
            return
        with one, other:
            if candidate.tap.tell(_terms(main, candidate), other) and main.tap.tell(_terms(candidate, candidate), one):
                main.met, candidate.met = candidate, main

    def _say_terms(self, name: str) -> None:
        main, candidate = self._latest(name, candidate=False), self._latest(name, candidate=True)
        if main is not None and candidate is not None and main.met is candidate:
            main.tap.tell(_terms(candidate, candidate))

    def _latest(self, name: str, *, candidate: bool) -> _Guest | None:
        """The one that took over last: others drain."""
        for guest in [guest for guest in self._guests if guest.worker.exited.is_set()]:
            guest.tap.close()
            self._guests.remove(guest)
        asked = (name, candidate, True)
        return next(
            (g for g in reversed(self._guests) if (g.module.name, g.module.candidate, g.serving) == asked), None
        )

    def _guest(self, worker: Worker) -> _Guest | None:
        return next((guest for guest in self._guests if guest.worker is worker), None)


def _terms(other: _Guest, candidate: _Guest) -> Terms:
    """About `other`, with what the director says of the candidate."""
    wanted = candidate.module
    return Terms(
        version=other.module.version,
        manifest_sha256=other.module.manifest_sha256,
        way="arm" if wanted.mode == "arm" else "shadow",
        share=0.0 if candidate.rests else wanted.share,
        salt=wanted.salt,
    )
