"""Which hub the `mooring` command talks to: address, token and CA, from a small TOML file.

`mooring-hub init` writes one for the hub's own machine, `mooring login` one for another; `contexts` knows where several
of them lie. The file holds a secret, so it is written with mode 0600.
"""

from __future__ import annotations

import json
import os
import tomllib
from pathlib import Path

import msgspec

from cloud_hub.operator.errors import ContextError

VARIABLE = "MOORING_CONTEXT"


class HubContext(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`url` of the hub (https://host:port), bearer `token`, and the PEM file of the hub's CA.

    `image_root` and `director_root` are files with the roots that signing starts from; empty where nobody signs.
    """

    url: str
    token: str
    ca: str
    image_root: str = ""
    director_root: str = ""

    def __post_init__(self) -> None:
        if not self.url.startswith("https://"):
            raise ValueError(f"url: expected https://HOST:PORT, got {self.url[:80]!r}")

    @classmethod
    def load(cls, path: Path) -> HubContext:
        """Raises ContextError. Relative files are looked for beside the context's."""
        try:
            context = msgspec.convert(tomllib.loads(path.read_text()), cls)
        except OSError as error:
            raise ContextError(
                "context-missing",
                f"{path}: {error.strerror}; log in with `mooring login URL`, or name a context file with --context or "
                f"in {VARIABLE} (a hub has its own in DIR/context.toml)",
            ) from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError, ValueError) as error:
            raise ContextError("context-invalid", f"{path}: {error}; write it anew with `mooring login URL`") from error
        names = ("ca", "image_root", "director_root")
        files = {name: str(path.parent / file) for name in names if (file := getattr(context, name))}
        return msgspec.structs.replace(context, **files)

    def write(self, path: Path) -> None:
        """A new file, or in the place of the old one; readable by its owner only."""
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        text = "".join(f"{name} = {json.dumps(value)}\n" for name, value in msgspec.structs.asdict(self).items())
        fresh = path.with_name(f"{path.name}.{os.getpid()}.new")
        try:
            with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(path)
        except OSError as error:
            fresh.unlink(missing_ok=True)
            raise ContextError("context-not-written", f"{path}: {error.strerror}; nothing was changed") from error
