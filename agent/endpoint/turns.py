"""Who runs the backend when: at most `parallel` predictions at a time, and none for ever.

The loop, the pool and threads of callers' own all take a turn here, so that a backend for one thread (a script) is
never run beside itself. A thread watches: a run over its deadline is asked to stop, and where it does not, the worker
ends and the agent starts another. Called by `predictor`.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable

from agent.backends import Backend

log = logging.getLogger(__name__)

WATCH_S = 1.0
GRACE_S = 1.0  # from asking a run to stop to ending the worker: the answer goes out meanwhile


class Turns:
    """`begin` and `end` belong together, on the thread that runs."""

    def __init__(self, backend: Backend, deadline_s: float, end_worker: Callable[[], None]) -> None:
        self._backend = backend
        self._deadline_s = deadline_s
        self._end_worker = end_worker
        self._free: queue.SimpleQueue[None] = queue.SimpleQueue()
        for _ in range(backend.parallel):
            self._free.put(None)
        self._since: dict[int, float] = {}  # when runs began, by thread
        self._asked: dict[int, float] = {}  # when they were asked to stop
        self._watcher: threading.Thread | None = None
        self._starting = threading.Lock()
        self._closed = threading.Event()

    def begin(self, timeout_s: float = 0.0) -> bool:
        """Whether there was a turn within the time."""
        try:
            self._free.get(timeout_s > 0.0, timeout_s)
        except queue.Empty:
            return False
        if self._watcher is None:
            self._start()
        self._since[threading.get_ident()] = time.monotonic()
        return True

    def end(self) -> bool:
        """Whether the run was asked to stop."""
        thread = threading.get_ident()
        del self._since[thread]
        self._free.put(None)
        return bool(self._asked) and self._asked.pop(thread, 0.0) > 0.0

    def stop(self, thread: int) -> None:
        """Asks the run in that thread to end; the worker ends where that cannot be, or does not help."""
        if thread not in self._since or thread in self._asked:
            return
        self._asked[thread] = time.monotonic()
        if not self._backend.interrupt(thread):
            log.error("a prediction took longer than %g s and cannot be stopped: the worker ends", self._deadline_s)
        elif thread not in self._since:
            self._asked.pop(thread, None)  # it was over just now

    def close(self) -> None:
        self._closed.set()

    def _start(self) -> None:
        with self._starting:
            if self._watcher is None:
                self._watcher = threading.Thread(target=self._watch, name="deadline", daemon=True)
                self._watcher.start()

    def _watch(self) -> None:
        while not self._closed.wait(min(WATCH_S, self._deadline_s / 4)):
            now = time.monotonic()
            for thread, since in list(self._since.items()):
                asked = self._asked.get(thread)
                if asked is not None and now - asked > GRACE_S:
                    self._end_worker()
                elif asked is None and now - since > self._deadline_s and self._since.get(thread) == since:
                    self.stop(thread)
