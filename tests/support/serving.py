"""A hub as `mooring-hub serve` runs it, in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cloud_hub.config import HubPaths
from support.waiting import until_blocking

HUB_COMMAND = str(Path(sys.executable).with_name("mooring-hub"))


@contextmanager
def serving_hub(paths: HubPaths) -> Iterator[Path]:
    """Its log, once it is ready."""
    root = paths.root
    ready, log = root.with_name(f"{root.name}-ready.json"), root.with_name(f"{root.name}-log")
    with log.open("wb") as output:
        arguments = [HUB_COMMAND, "serve", str(root), "--ready-file", str(ready)]
        process = subprocess.Popen(arguments, stdout=output, stderr=output, start_new_session=True)
    try:
        until_blocking(lambda: ready.exists() or process.poll() is not None, "the hub to be ready", 40)
        assert process.poll() is None, log.read_text()
        yield log
    finally:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
