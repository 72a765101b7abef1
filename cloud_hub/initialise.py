"""Makes a hub directory: settings, keys and authorities, database, the operator's token. All of it or nothing.

Everything is made in a folder inside the directory and moved into place at the end, `hub.toml` last: a directory with
that file is a whole hub. Called by `cli`; what is trusted and how keys are made is `trust.setup`.
"""

from __future__ import annotations

import json
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from cloud_hub.clock import Clock, system_clock
from cloud_hub.config import CONFIG_NAME, HubConfig, HubPaths
from cloud_hub.errors import BadRequest, Conflict
from cloud_hub.store.address import database_url
from cloud_hub.store.beginning import emptied_on_failure
from cloud_hub.store.engine import Store
from cloud_hub.tokens import add_token, new_token
from cloud_hub.trust import setup
from cloud_hub.trust.keys import PRIVATE_FILE, PRIVATE_FOLDER, write_private
from cloud_hub.trust.standing import REPOSITORIES, current_root_body

OPERATOR: Final = "operator"
_TEMPORARY_PREFIX: Final = ".init-"


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on right now, all different."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("", 0))
        return [int(one.getsockname()[1]) for one in sockets]


async def initialise(
    root: Path, config: HubConfig, offline_keys: Path | None = None, clock: Clock = system_clock
) -> HubPaths:
    """A new hub in `root`, which may exist when it is empty.

    Raises Conflict `already-initialised`, `folder-not-empty` or `database-not-empty`, and as `trust.setup.create`.
    After any error `root`, `offline_keys` and the database are as they were before.
    """
    _refuse_existing(root)
    if offline_keys is not None and offline_keys.resolve().is_relative_to(root.resolve()):
        raise BadRequest(
            "offline-keys-inside",
            f"{offline_keys} lies inside the hub {root}: expected a folder elsewhere; nothing was created",
        )
    with _removed_on_failure(root, offline_keys):
        root.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
        root.chmod(PRIVATE_FOLDER)
        for remains in root.glob(f"{_TEMPORARY_PREFIX}*"):
            shutil.rmtree(remains)
        making = Path(tempfile.mkdtemp(dir=root, prefix=_TEMPORARY_PREFIX))
        async with emptied_on_failure(database_url(config, HubPaths(making))):
            await _make(HubPaths(making), HubPaths(root), config, offline_keys, clock)
        for name in sorted((path.name for path in making.iterdir()), key=lambda name: name == CONFIG_NAME):
            (making / name).rename(root / name)
        making.rmdir()
    return HubPaths(root)


async def _make(making: HubPaths, final: HubPaths, config: HubConfig, offline_keys: Path | None, clock: Clock) -> None:
    await setup.create(making, config, offline_keys, clock)
    token = new_token()
    store = await Store.open(database_url(config, making))
    try:
        async with store.read() as connection:
            roots = {name: await current_root_body(connection, name) for name in REPOSITORIES}
        await add_token(store, clock, OPERATOR, token)
    finally:
        await store.close()
    if not config.uses_postgres:
        making.database.chmod(PRIVATE_FILE)
    write_private(making.operator_token, f"{token}\n".encode())
    for folder in filter(None, (making.roots, offline_keys)):
        for name, body in roots.items():
            write_private(folder / f"{name}.root.json", body)
    context = {"url": config.api_url, "token": token, "ca": str(final.server_ca_crt.resolve())}
    context |= {f"{name}_root": str((final.roots / f"{name}.root.json").resolve()) for name in roots}
    lines = (f"{name} = {json.dumps(value)}\n" for name, value in context.items())
    write_private(making.context, "".join(lines).encode())
    config.write(making.root)


def _refuse_existing(root: Path) -> None:
    if HubPaths(root).config.exists():
        raise Conflict("already-initialised", f"{root}: there is a hub already; nothing was changed")
    if not root.exists():
        return
    if not root.is_dir():
        raise Conflict("folder-not-empty", f"{root}: expected a folder, got a file; nothing was changed")
    others = [path.name for path in root.iterdir() if not path.name.startswith(_TEMPORARY_PREFIX)]
    if others:
        raise Conflict(
            "folder-not-empty",
            f"{root}: expected an empty folder or none, found {', '.join(sorted(others)[:5])}; nothing was changed",
        )


@contextmanager
def _removed_on_failure(root: Path, offline_keys: Path | None) -> Iterator[None]:
    new_folders = [folder for folder in (root, offline_keys) if folder is not None and not folder.exists()]
    keys_before = _keys_in(offline_keys)
    try:
        yield
    except BaseException:
        for path in root.iterdir() if root.is_dir() else ():
            _remove(path)
        for path in _keys_in(offline_keys) - keys_before:
            path.unlink()
        for folder in new_folders:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        raise


def _keys_in(folder: Path | None) -> set[Path]:
    if folder is None or not folder.is_dir():
        return set()
    return {*folder.glob("*.pem"), *folder.glob("*.root.json")}


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
