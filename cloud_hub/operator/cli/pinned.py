"""What commands that sign share: the pinned root, what is published as verified from it, and how long it shall last."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloud_hub.operator.errors import FileError, OperatorError

if TYPE_CHECKING:
    from tuf.api.metadata import Metadata, Root

    from cloud_hub.operator.client import HubClient
    from cloud_hub.operator.trusted import PublishedImage
    from cloud_hub.operator.verify import Source
    from cloud_hub.trust.standing import Repository

CALL_DEADLINE_S = 300.0
DAY_S = 86_400.0
PinnedRoot = Annotated[
    Path | None,
    typer.Option("--root", metavar="FILE", help="A root that you trust; the context's without it."),
]
Days = Annotated[int, typer.Option(min=1, max=3650, help="How long it is good for.")]


def until(days: int) -> datetime:
    """TUF counts whole seconds."""
    return datetime.fromtimestamp(int(time.time() + days * DAY_S), UTC)


def pinned_root(hub: HubClient, root: Path | None, repository: Repository = "image") -> bytes:
    """Raises OperatorError `root-not-pinned`, FileError."""
    known = hub.context.image_root if repository == "image" else hub.context.director_root
    path = root or (Path(known) if known else None)
    if path is None:
        raise OperatorError(
            "root-not-pinned",
            f"no {repository} root is pinned here: copy DIR/roots/{repository}.root.json of the hub, or the copy "
            "beside the offline keys, and name it with --root or in the context; nothing was signed",
        )
    try:
        return path.read_bytes()
    except OSError as error:
        raise FileError("not-readable", f"{path}: {error.strerror}; nothing was signed") from error


def hub_source(hub: HubClient) -> Source:
    """The hub, for the thread in which verification runs; the connection stays in the loop."""
    from cloud_hub.operator.verify import Source

    loop = asyncio.get_running_loop()

    def metadata(name: str) -> bytes | None:
        return asyncio.run_coroutine_threadsafe(hub.image_metadata(name), loop).result(CALL_DEADLINE_S)

    def blob(sha256: str) -> bytes:
        return asyncio.run_coroutine_threadsafe(hub.blob(sha256), loop).result(CALL_DEADLINE_S)

    return Source(metadata, blob)


async def published_image(hub: HubClient, root: Path | None) -> PublishedImage:
    """The image repository, verified from the pinned root."""
    from cloud_hub.operator.trusted import read_image

    pinned = pinned_root(hub, root)
    return await asyncio.to_thread(read_image, hub_source(hub).metadata, pinned, time.time())


async def published_root(hub: HubClient, root: Path | None, repository: Repository) -> Metadata[Root]:
    """The newest root of either repository, as it follows from the pinned one."""
    from cloud_hub.operator.trusted import read_root

    pinned = pinned_root(hub, root, repository)
    fetch: Callable[[str], bytes | None] = hub_source(hub).metadata
    if repository == "director":
        loop = asyncio.get_running_loop()

        def fetch_director(name: str) -> bytes | None:
            return asyncio.run_coroutine_threadsafe(hub.director_root(name), loop).result(CALL_DEADLINE_S)

        fetch = fetch_director
    return await asyncio.to_thread(read_root, fetch, pinned)
