"""The folder in the place of the hub: metadata for `agent.trust`, blocks for `agent.transfer`.

`folder` is set while one is installed from. Reads happen in a thread of their own, because a dying stick may block for
long; whoever waits gives up at its deadline. Made by the composition root, switched by `agent.offline.install`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from agent.errors import LinkDown, LinkError, LinkTimeout, Refused
from agent.offline.folder import Folder, FolderError
from modules.errors import ModuleError
from modules.messages import MAX_BLOCK_BYTES, Answer, Repository

READ_TIMEOUT_S = 30.0
_T = TypeVar("_T")


class FolderSource:
    """A `Source`, and what the verifier asks. Down while there is no folder, or it cannot be read."""

    name = "folder"

    def __init__(self, device: str) -> None:
        self.folder: Folder | None = None
        self._device = device
        self._thread = ThreadPoolExecutor(max_workers=2, thread_name_prefix="folder")

    async def read(self, sha256: str, offset: int, length: int, timeout_s: float) -> bytes:
        """As `Source.read`."""
        return await self._ask(lambda folder: folder.blob(sha256, offset, length), timeout_s)

    async def get(
        self,
        repository: Repository,
        name: str,
        offset: int = 0,
        length: int = MAX_BLOCK_BYTES,
        timeout_s: float | None = None,
        held: bytes | None = None,
        grant: str = "",
    ) -> Answer:
        """As `Link.get`: at most MAX_BLOCK_BYTES. Raises Refused, LinkDown, LinkTimeout, LinkError."""
        most = min(length, MAX_BLOCK_BYTES)

        def look(folder: Folder) -> Answer:
            if repository == "blob":
                return Answer(folder.blob_size(name), offset, folder.blob(name, offset, most))
            size, data = folder.metadata(repository, self._device, name, offset, most)
            return Answer(size, offset, data)

        return await self._ask(look, READ_TIMEOUT_S if timeout_s is None else timeout_s)

    async def look(self, at: Callable[[Folder], _T], timeout_s: float = READ_TIMEOUT_S) -> _T:
        """Calls `at` with the folder, in the thread. Raises what it raises, LinkDown, LinkTimeout."""
        folder = self.folder
        if folder is None:
            raise LinkDown("there is no folder to install from")
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.get_running_loop().run_in_executor(self._thread, at, folder)
        except TimeoutError as error:
            raise LinkTimeout(f"{folder.path}: expected an answer within {timeout_s} s") from error

    async def _ask(self, at: Callable[[Folder], _T], timeout_s: float) -> _T:
        """Its errors as those of a link."""
        try:
            return await self.look(at, timeout_s)
        except (FolderError, ModuleError) as error:
            raise _as_link_error(error) from error

    def close(self) -> None:
        """Does not wait for a read that hangs."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def _as_link_error(error: FolderError | ModuleError) -> LinkError:
    if not isinstance(error, FolderError):
        return Refused(str(error), "bad-request")
    if error.key == "file-missing":
        return Refused(str(error), "not-found")
    if error.key in {"folder-gone", "folder-unreadable"}:
        return LinkDown(str(error))
    return Refused(str(error), "not-allowed")
