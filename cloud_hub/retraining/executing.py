"""Runs a training command: its folders, its environment, its deadline, the end of what it says.

The command gets MOORING_DATASET (a folder with train.parquet, heldout.parquet and dataset.json), MOORING_BASE_MODEL
(the champion's files), MOORING_OUTPUT (where the candidate's files go), MOORING_RUN, MOORING_PLAN. In MOORING_OUTPUT
`reference.npz` is a reference sample for the module and `mooring.json` says where the candidate comes from; every other
file is the candidate's. Used by `runner`.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from cloud_hub.retraining.guard import LET_GO, NOT_STARTED, TOO_LONG
from cloud_hub.retraining.records import LOG_CHARS

REFERENCE: Final = "reference.npz"
ABOUT: Final = "mooring.json"
MAX_ABOUT_BYTES: Final = 64 * 1024
PIECE_BYTES: Final = 64 * 1024
GUARD_S: Final = 15.0  # more than the guard takes to end everything


class About(msgspec.Struct, frozen=True):
    """What a training command may say of its candidate, in mooring.json. Other fields are its own."""

    git_commit: str = ""
    mlflow_run: str = ""
    mlflow_uri: str = ""


class TrainingFailed(Exception):
    """The command did not make a candidate; the words say why."""


@dataclass(frozen=True)
class Folders:
    """All below one folder of the run's own. `work` is where the command starts."""

    root: Path
    work: Path

    @property
    def dataset(self) -> Path:
        return self.root / "dataset"

    @property
    def base_model(self) -> Path:
        return self.root / "base-model"

    @property
    def output(self) -> Path:
        return self.root / "output"

    def environment(self, inherited: Mapping[str, str], run: str, plan: str) -> dict[str, str]:
        return {
            **inherited,
            "MOORING_DATASET": str(self.dataset),
            "MOORING_BASE_MODEL": str(self.base_model),
            "MOORING_OUTPUT": str(self.output),
            "MOORING_RUN": run,
            "MOORING_PLAN": plan,
        }


class Log:
    """The end of what was said."""

    def __init__(self) -> None:
        self._kept = b""

    def add(self, piece: bytes) -> None:
        self._kept = (self._kept + piece)[-4 * LOG_CHARS :]

    @property
    def text(self) -> str:
        return self._kept.decode(errors="replace").replace("\x00", "")[-LOG_CHARS:]


async def execute(
    command: Sequence[str],
    folders: Folders,
    environment: Mapping[str, str],
    deadline_s: float,
    log: Log,
    said: Callable[[bytes], None] = lambda _: None,
) -> None:
    """Until it has ended, well. `said` gets what it says as it comes. Raises TrainingFailed. A cancellation ends it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "cloud_hub.retraining.guard", str(deadline_s), "--", *command, cwd=folders.work,
        env=dict(environment), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        async with asyncio.timeout(deadline_s + 2 * GUARD_S):
            await _listen(process, log, said)
            status = await process.wait()
    except TimeoutError:
        status = TOO_LONG
    finally:
        await asyncio.shield(_let_go(process))
    if status:
        raise TrainingFailed(_words(status, deadline_s))


def candidate_files(folders: Folders) -> dict[str, Path]:
    """The candidate's files by path. Raises TrainingFailed when there are none."""
    found = {
        path.relative_to(folders.output).as_posix(): path
        for path in sorted(folders.output.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }
    model = {name: path for name, path in found.items() if name not in (REFERENCE, ABOUT)}
    if not model:
        raise TrainingFailed("the command ended well and left no file in MOORING_OUTPUT")
    return model


def about(folders: Folders) -> About:
    """Raises TrainingFailed on a mooring.json that is none."""
    path = folders.output / ABOUT
    if not path.is_file():
        return About()
    try:
        return msgspec.json.decode(path.read_bytes()[:MAX_ABOUT_BYTES], type=About)
    except (OSError, msgspec.DecodeError) as error:
        raise TrainingFailed(f"{ABOUT}: {error}") from error


async def _listen(process: asyncio.subprocess.Process, log: Log, said: Callable[[bytes], None]) -> None:
    assert process.stdout is not None  # noqa: S101 - it was asked for
    while piece := await process.stdout.read(PIECE_BYTES):
        log.add(piece)
        said(piece)


async def _let_go(process: asyncio.subprocess.Process) -> None:
    """The guard ends the command when its input is closed; after its time it is killed."""
    if process.stdin is not None:
        process.stdin.close()
    if process.returncode is None:
        try:
            async with asyncio.timeout(GUARD_S):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def _words(status: int, deadline_s: float) -> str:
    if status == TOO_LONG:
        return f"the command had not ended after {deadline_s:g} s (training.deadline_s); it was ended"
    if status == LET_GO:
        return "the command was ended before it was done"
    if status == NOT_STARTED:
        return "the command could not be started; see the log"
    return f"the command ended with status {status}; see the log"
