"""Coverage-guided fuzzing with atheris: `python tests/fuzz/device.py TARGET [libFuzzer options] [FOLDER]`.

Needs atheris, which is not among our requirements; `make soak` runs it where it is installed. FOLDER keeps the corpus;
good bytes are put there first. A crash is a bug: the bytes are written beside the working directory by libFuzzer.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def main() -> None:
    """Does not return: libFuzzer ends the process."""
    sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests")]
    atheris = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["agent", "modules", "firmware_profiles"]):
        targets = importlib.import_module("fuzz.targets").TARGETS
    if len(sys.argv) < 2 or sys.argv[1] not in targets:
        sys.exit(f"expected one of {', '.join(targets)}")
    target = targets[sys.argv.pop(1)]
    folder = next((Path(word) for word in sys.argv[1:] if not word.startswith("-")), None)
    if folder is not None:
        for number, good in enumerate(target.corpus):
            (folder / f"good-{number}").write_bytes(good)
    atheris.Setup(sys.argv, target.run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
