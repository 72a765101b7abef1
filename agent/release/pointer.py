"""`release.json`: which release of the agent runs, which one is on trial, and how often each was started.

Pure values and one small file. Read and written by the launcher, and by `agent.release.kind`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec.structs import replace

from agent.files import write_durably
from modules.errors import MALFORMED

FILE = "release.json"
FOLDER = "releases"
COMPLETE = "complete"  # in a release's folder: everything is there and on the disk
TRIAL_BOOTS = 2  # one start, and one more for a power cut that was nobody's fault
CURRENT_BOOTS = 5  # starts in a row of which none was steady: then the agent that was installed runs instead
_Release = Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{32})?$")]
_Count = Annotated[int, msgspec.Meta(ge=0)]


class Pointer(msgspec.Struct, frozen=True):
    """A release is named by the first 32 hexadecimal digits of its manifest's digest; empty is the installed agent.

    `boots` counts the starts of what is to run (`trial`, else `current`) since it was last steady. `trial_s` bounds
    one life of the trial, in seconds; `online` says whether the agent before it had a connection. `failed` is the
    release that was given up last, and `why`.
    """

    current: _Release = ""
    trial: _Release = ""
    boots: _Count = 0
    trial_s: _Count = 0
    online: bool = False
    failed: _Release = ""
    why: str = ""

    @property
    def wanted(self) -> str:
        return self.trial or self.current


def load(state: Path) -> Pointer:
    """The installed agent where there is no such file, or one that nobody can read: better an old agent than none."""
    try:
        return msgspec.json.decode((state / FILE).read_bytes(), type=Pointer)
    except (OSError, *MALFORMED):
        return Pointer()


def save(state: Path, pointer: Pointer) -> None:
    """Durable when it returns. Raises OSError; then the old one stands."""
    write_durably(state / FILE, msgspec.json.encode(pointer))


def next_start(pointer: Pointer, is_complete: Callable[[str], bool]) -> tuple[Pointer, str]:
    """What to write down before the next start, and the release to start. Pure.

    `is_complete` says whether the folder of a release is whole. A trial that ended too often is given up and what ran
    before it starts; a current release that cannot stay up makes way for the installed agent.
    """
    if pointer.trial and (pointer.boots >= TRIAL_BOOTS or not is_complete(pointer.trial)):
        pointer = given_up(pointer, is_complete(pointer.trial))
    if not pointer.wanted:
        return pointer, ""
    if not pointer.trial and (pointer.boots >= CURRENT_BOOTS or not is_complete(pointer.current)):
        return pointer, ""
    return replace(pointer, boots=pointer.boots + 1), pointer.wanted


def given_up(pointer: Pointer, is_complete: bool) -> Pointer:
    """Without its trial, and saying why."""
    ended = f"it was started {pointer.boots} times and ended each time before its probation did"
    why = ended if is_complete else "its files are not whole"
    return replace(pointer, trial="", boots=0, trial_s=0, failed=pointer.trial, why=why)


def tried(pointer: Pointer, release: str, trial_s: int, online: bool) -> Pointer:
    """With `release` to be started next, on trial."""
    return replace(pointer, trial=release, boots=0, trial_s=trial_s, online=online, failed="", why="")


def settled(pointer: Pointer, release: str) -> Pointer:
    """With `release` as what runs from now on, and nothing on trial."""
    return replace(pointer, current=release, trial="", boots=0, trial_s=0)
