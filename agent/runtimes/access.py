"""Who on this device may use its modules: the token for TCP, made here once, and the users of the Unix sockets.

Called by `agent.runtimes.process`; checked in the worker, see `agent.endpoint.guard`.
"""

from __future__ import annotations

import grp
import logging
import os
import secrets
from pathlib import Path

import msgspec

from agent.config import ServingSettings, StatePaths
from agent.files import write_durably
from agent.sandbox.given import Given

TOKEN_BYTES = 32
_logger = logging.getLogger(__name__)


class Access:
    """As the settings of [serving] have it."""

    def __init__(self, paths: StatePaths, settings: ServingSettings) -> None:
        self._paths = paths
        self._settings = settings

    def given(self, given: Given) -> Given:
        """With what a worker must know of it. Raises OSError when there is no token and none can be made."""
        settings = self._settings
        peers = tuple(sorted({*settings.users, os.geteuid(), 0})) if settings.users else ()
        token = self._token() if settings.token else ""
        return msgspec.structs.replace(given, token=token, peers=peers, shares_memory=settings.shared_memory)

    def share(self, path: Path) -> None:
        """Gives a file to the group of the settings."""
        if not self._settings.group:
            return
        try:
            os.chown(path, -1, grp.getgrnam(self._settings.group).gr_gid)
        except (KeyError, OSError) as error:
            _logger.warning("group may not use a file", extra={"path": str(path), "why": str(error)})

    def _token(self) -> str:
        path = self._paths.token
        try:
            known = path.read_text().strip()
        except FileNotFoundError:
            known = ""
        if known:
            self.share(path)  # the setting may have changed since
            return known
        token = secrets.token_urlsafe(TOKEN_BYTES)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, f"{token}\n".encode(), 0o640)
        self.share(path)
        return token
