"""One worker's way to hear of the other version: a socket that it inherits, and the parent's end of it.

Nothing here waits: a worker that does not read what it is told has not heard it, and is told again with its next
start. Made by `introductions`.
"""

from __future__ import annotations

import logging
import socket

from agent.candidates.terms import Terms, encode_terms

_logger = logging.getLogger(__name__)


class Tap:
    """`handle` is to be inherited by the worker, and then closed here (`given`)."""

    def __init__(self) -> None:
        """Raises OSError."""
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours.setblocking(False)
        self.handle = self._theirs.fileno()

    def given(self) -> None:
        """The worker has its end now, or there is none."""
        self._theirs.close()

    def tell(self, terms: Terms, pipe: socket.socket | None = None) -> bool:
        """Whether that could be said."""
        try:
            if pipe is None:
                self._ours.send(encode_terms(terms))
            else:
                socket.send_fds(self._ours, [encode_terms(terms)], [pipe.fileno()])
        except OSError as error:
            _logger.info("a worker was not told of the other version", extra={"why": str(error)})
            return False
        return True

    def close(self) -> None:
        self._ours.close()
        self._theirs.close()
