"""The last lines of a log that fit what was asked: by time, level, number and bytes. Used by `logs` and `bundle`.

The agent's own lines say their level; of a module's, the first word that is one counts, and what says none is `info`.
A line that is indented, or has no time, goes with the one before it: so a traceback stays whole.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from agent.asked.redact import redacted
from modules.commands import AskLogs

MAX_READ = 8 * 1024 * 1024  # of what is kept, the newest
MAX_LINE = 16 * 1024
LEVELS = ("debug", "info", "warning", "error")
_STAMP = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:Z|[+-]\d{4})) ")
_WORDS = r"debug|info|warn(?:ing)?|error|critical|fatal"
# In capitals anywhere; else only where a level stands, for prose has such words, too.
_LEVEL = re.compile(rf"\b({_WORDS.upper()})\b|^\W*({_WORDS})\b|\b({_WORDS})[\]:]")
_RAISED = re.compile(r"[\w.]*(?:Error|Exception|Interrupt)(?::|$)|Traceback \(most recent call last\)")
_NAMES = {"warn": "warning", "critical": "error", "fatal": "error"}
LOOKED_AT = 80  # characters at a line's beginning that may say its level


@dataclass(frozen=True)
class Line:
    """`at` is seconds since the epoch by the device's clock, 0 where nothing says it."""

    at: float
    level: str
    text: str


@dataclass(frozen=True)
class Picked:
    """`lines` of those `found`, the newest, oldest first."""

    lines: tuple[str, ...]
    found: int


def kept(path: Path, most: int = MAX_READ) -> bytes:
    """What is on the disk of a log and its older file, the newest bytes. Nothing where there is none."""
    newest = _end(path, most)
    return _end(path.with_name(f"{path.name}.1"), most - len(newest)) + newest


def pick(data: bytes, asked: AskLogs) -> Picked:
    """Redacted. A first line that was cut off is left out."""
    lowest = LEVELS.index(asked.level)
    chosen: deque[str] = deque(maxlen=asked.limit)
    found = 0
    for line in parse(data.decode(errors="replace")):
        fits = line.at >= asked.since and (not asked.until or line.at < asked.until)
        if fits and LEVELS.index(line.level) >= lowest:
            found += 1
            chosen.append(line.text)
    return Picked(_newest(list(chosen), asked.max_bytes), found)


def parse(text: str) -> Iterator[Line]:
    """Lines in their order, each with its own time and level, or those of the line that it goes with."""
    before = Line(0.0, "info", "")
    for raw in text.split("\n"):
        words = raw.rstrip("\r")[:MAX_LINE]
        if not words:
            continue
        before = _line(words, before)
        yield before


def _line(words: str, before: Line) -> Line:
    match = _STAMP.match(words)
    if match is None:
        return Line(before.at, before.level, words)
    said = words[match.end() :]
    at = _seconds(match[1])
    return Line(at, before.level if said[:1].isspace() else _level(said), words)


def _level(said: str) -> str:
    if _RAISED.match(said):
        return "error"
    match = _LEVEL.search(said[:LOOKED_AT])
    word = (match[1] or match[2] or match[3]).lower() if match else "info"
    return _NAMES.get(word, word)


def _seconds(stamp: str) -> float:
    try:
        return datetime.fromisoformat(stamp).timestamp()
    except ValueError:
        return 0.0


def _newest(lines: list[str], most: int) -> tuple[str, ...]:
    """As many of the last lines as fit, their ends included."""
    taken = 0
    for index in range(len(lines) - 1, -1, -1):
        lines[index] = redacted(lines[index])
        taken += len(lines[index].encode()) + 1
        if taken > most:
            return tuple(lines[index + 1 :])
    return tuple(lines)


def _end(path: Path, most: int) -> bytes:
    if most <= 0:
        return b""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - most))
            data = file.read(most)
    except OSError:
        return b""
    return data.partition(b"\n")[2] if size > most else data
