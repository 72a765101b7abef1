"""Where a module answers: from a name, a path or an address to its sockets."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from mooring_client.errors import ClientError

STATE = "/var/lib/mooring"  # the agent's own default
STATE_VARIABLE = "MOORING_STATE"
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_FAST, _PLAIN = ".fast.sock", ".sock"


class Place(NamedTuple):
    """`fast` and `plain` are the paths of the sockets for shared memory and HTTP; `host` and `port` are TCP's. Empty
    or 0 where there is none.
    """

    model: str
    fast: str = ""
    plain: str = ""
    host: str = ""
    port: int = 0

    def __str__(self) -> str:
        return f"http://{self.host}:{self.port}/v2/models/{self.model}" if self.host else self.plain or self.fast


def find(module: str | os.PathLike[str], state: str | os.PathLike[str] | None, model: str) -> Place:
    """`module` is a name, the path of one of its sockets, or http://HOST:PORT/v2/models/NAME. `state` is the agent's
    state directory; else MOORING_STATE or /var/lib/mooring. `model` where a path does not tell the name. Raises
    ClientError.
    """
    text = os.fspath(module)
    if text.startswith("http://"):
        return _address(text, model)
    if "/" in text or text.endswith(_PLAIN):
        base = text.removesuffix(_FAST) if text.endswith(_FAST) else text.removesuffix(_PLAIN)
        return Place(model or Path(base).name, f"{base}{_FAST}", f"{base}{_PLAIN}")
    if not _NAME.fullmatch(text):
        raise ClientError(f"expected a module's name, the path of a socket or http://HOST:PORT, got {text[:80]!r}")
    folder = Path(state or os.environ.get(STATE_VARIABLE) or STATE) / "endpoints"
    return Place(text, str(folder / f"{text}{_FAST}"), str(folder / f"{text}{_PLAIN}"))


def _address(text: str, model: str) -> Place:
    parts = urlsplit(text)
    name = model or parts.path.removeprefix("/v2/models/").partition("/")[0]
    try:
        port = parts.port or 80
    except ValueError:
        port = 0
    if not parts.hostname or not port or not _NAME.fullmatch(name):
        raise ClientError(f"expected http://HOST:PORT/v2/models/NAME, got {text[:120]!r}")
    return Place(name, host=parts.hostname, port=port)
