"""How the agent writes its log: one line to standard error for each record, key=value, for journald and for people.

The text of a record is constant, what varies is in its fields. Set up once, by the command line. `keeping` also keeps
the newest lines in a bounded file, which the hub may ask for; called by `agent.service`.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agent.sandbox.log import RotatingLog

KEPT_NAME = "_agent.log"  # in STATE/logs; no module's name begins so
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class FieldFormatter(logging.Formatter):
    """`2026-01-31T12:00:00Z warning agent.link "connection lost" key=value ...`, tracebacks below."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {key: value for key, value in vars(record).items() if key not in _STANDARD}
        head = f"{self.formatTime(record)} {record.levelname.lower()} {record.name} {json.dumps(record.getMessage())}"
        line = " ".join([head, *(f"{key}={_value(value)}" for key, value in fields.items())])
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        return super().formatTime(record, "%Y-%m-%dT%H:%M:%S%z")


def configure(level: str = "INFO") -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(FieldFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


@contextmanager
def keeping(folder: Path, most_bytes: int) -> Iterator[None]:
    """Inside, what is logged is kept in the folder too, in two files of half of `most_bytes` (0: it is not)."""
    if not most_bytes:
        yield
        return
    handler = _Kept(RotatingLog(folder / KEPT_NAME, most_bytes // 2, stamped=False))
    handler.setFormatter(FieldFormatter())
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()


class _Kept(logging.Handler):
    def __init__(self, log: RotatingLog) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._log.write(self.format(record).encode(errors="replace") + b"\n")
        except Exception:  # logging must not stop what logs
            self.handleError(record)

    def close(self) -> None:
        self._log.close()
        super().close()


def _value(value: object) -> str:
    text = str(value)
    return text if text and not any(c in text for c in ' "=\n') else json.dumps(text)
