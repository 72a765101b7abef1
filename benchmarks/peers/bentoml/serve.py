"""Starts service.py: `python serve.py MODEL PORT`. In the peer's own environment."""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    os.environ |= {"MODEL": sys.argv[1], "BENTOML_DO_NOT_TRACK": "1"}
    os.chdir(Path(__file__).parent)
    program = str(Path(sys.executable).with_name("bentoml"))
    os.execv(program, [program, "serve", "service:Bench", "--host", "127.0.0.1", "--port", sys.argv[2]])  # noqa: S606
