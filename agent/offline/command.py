"""`mooring-agent install`: hands a folder to the agent that runs here, or to one that it starts for that, and follows.

What is installed is decided and done by the agent; this only asks, shows and waits. Called by `agent.cli`.
"""

from __future__ import annotations

import contextlib
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from agent import status
from agent.config import AgentConfig, StatePaths
from agent.errors import AgentError
from agent.offline.folder import Folder
from agent.offline.request import Letterbox, Outcome, Request

LOOK_S = 0.2
TAKEN_S = 60.0  # until the agent says that it has the request; it may be starting
DEADLINE_S = 25 * 3600.0  # the update machine's own deadlines are shorter
LEAVE_S = 60.0
INTERRUPTED = 130
BAR = 30
Agent = subprocess.Popen[bytes]


class InstallError(AgentError):
    """The installation could not be followed to its end. Keys: agent-gone, agent-silent, agent-busy, agent-too-old."""

    key = "agent-gone"


def install(paths: StatePaths, folder: Path, as_json: bool) -> int:
    """0 when what the folder brings runs here, else 1. Raises AgentError, OSError."""
    config = AgentConfig.load(paths)
    Folder(folder).check(config.device)
    box = Letterbox(paths.root)
    request = Request(secrets.token_hex(8), str(folder))
    running = status.running(paths)
    if running:
        box.ask(request)
        _ring(box, request)
    try:
        with contextlib.nullcontext() if running else _an_agent(paths, box, request, as_json) as agent:
            outcome = _follow(paths, box, request, agent, as_json)
    except KeyboardInterrupt:
        how = "the agent goes on" if running else "it goes on when an agent runs"
        _note(f"not waiting any longer; {how}, `mooring-agent status` shows it", as_json)
        return INTERRUPTED
    said = msgspec.json.format(msgspec.json.encode(outcome)).decode() if as_json else _words(outcome)
    sys.stdout.write(f"{said}\n")
    return 0 if outcome.good else 1


def _ring(box: Letterbox, request: Request) -> None:
    try:
        box.ring()
    except OSError as error:
        box.forget(request.id)
        text = "the agent that runs here does not take folders: it is older than 0.2, or just starting; try again"
        raise InstallError(text, "agent-too-old") from error


@contextlib.contextmanager
def _an_agent(paths: StatePaths, box: Letterbox, request: Request, quiet: bool) -> Iterator[Agent]:
    """None runs: one is started, which takes the request up, and stopped in order when it is done."""
    box.ask(request)
    _note("no agent runs here: starting one until the installation has ended", quiet)
    log = paths.root / "install" / "agent.log"
    command = [sys.executable, "-m", "agent.cli", "run", "--state", str(paths.root), "--log-level", "warning"]
    with log.open("wb") as out:
        agent = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        yield agent
    except InstallError as error:
        raise InstallError(f"{error}; its last words stand in {log}", error.key) from error
    finally:
        with contextlib.suppress(ProcessLookupError):
            agent.send_signal(signal.SIGTERM)
        try:
            agent.wait(LEAVE_S)
        except subprocess.TimeoutExpired:
            agent.kill()
            agent.wait()


def _follow(paths: StatePaths, box: Letterbox, request: Request, agent: Agent | None, quiet: bool) -> Outcome:
    """Until the outcome is final. Raises InstallError."""
    line = _Line(sys.stderr.isatty() and not quiet)
    began, absent = time.monotonic(), 0.0
    with contextlib.closing(line):
        while True:
            outcome = box.outcome()
            mine = outcome is not None and outcome.id == request.id
            if outcome is not None and mine and outcome.final:
                return outcome
            if outcome is not None and mine:
                line.show(paths, outcome.state)
            if agent is not None and agent.poll() is not None:
                raise InstallError(f"the agent ended with status {agent.returncode}", "agent-gone")
            absent = 0.0 if status.running(paths) else absent + LOOK_S
            _check_alive(box, request, mine, time.monotonic() - began, absent)
            time.sleep(LOOK_S)


def _check_alive(box: Letterbox, request: Request, mine: bool, waited_s: float, absent_s: float) -> None:
    if not mine and waited_s > TAKEN_S:
        raise InstallError(f"the agent did not take the request within {TAKEN_S:g} s", "agent-silent")
    if absent_s > TAKEN_S:
        raise InstallError("the agent has ended; it goes on with the installation when it runs again", "agent-gone")
    known = box.request()
    if known is not None and known.id != request.id:
        raise InstallError(f"another request took the place of this one: {known.folder}", "agent-busy")
    if waited_s > DEADLINE_S:
        raise InstallError(f"the installation did not end within {DEADLINE_S:g} s", "agent-silent")


def _progress(paths: StatePaths, state: str) -> str:
    """One line: the update's state, and how much has been copied."""
    with contextlib.suppress(AgentError):
        known = status.load(paths)
        if known is not None and state == "installing":
            current = known.report.current
            if current.state == "fetching" and current.total_bytes:
                filled = BAR * current.done_bytes // current.total_bytes
                mib, total = current.done_bytes / 2**20, current.total_bytes / 2**20
                return f"copying [{'#' * filled}{'.' * (BAR - filled)}] {mib:.1f} of {total:.1f} MiB"
            return current.state if current.state != "idle" else state
    return state


class _Line:
    """Progress on standard error: one line, rewritten; nothing where that is no terminal."""

    def __init__(self, terminal: bool) -> None:
        self._terminal, self._said = terminal, ""

    def show(self, paths: StatePaths, state: str) -> None:
        if not self._terminal:
            return
        text = _progress(paths, state)
        if text != self._said:
            sys.stderr.write(f"\r{text:{len(self._said)}}")
            sys.stderr.flush()
            self._said = text

    def close(self) -> None:
        if self._said:
            sys.stderr.write(f"\r{'':{len(self._said)}}\r")
            sys.stderr.flush()


def _note(text: str, quiet: bool) -> None:
    if not quiet:
        sys.stderr.write(f"{text}\n")


def _words(outcome: Outcome) -> str:
    what = ", ".join(outcome.modules) or "no module"
    match outcome.state:
        case "installed":
            return f"installed: {what} (director version {outcome.director_version})"
        case "nothing-new":
            return f"nothing to do: {outcome.text} ({what})"
    return f"{outcome.state}: {outcome.key}: {outcome.text}"
