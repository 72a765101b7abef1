"""From what went wrong to the status that a client gets. Called by the handlers, `resources` and `score`."""

from __future__ import annotations

import logging

from agent.backends import BackendError
from agent.endpoint.exchange import Refused

log = logging.getLogger(__name__)


def as_refused(error: Exception) -> Refused:
    """The one place where an exception becomes a status."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, BackendError):
        return Refused(400 if error.key == "bad-input" else 500, str(error))
    log.error("a request failed for a reason of our own", exc_info=error)
    return Refused(500, f"the worker failed on this request: {type(error).__name__}")
