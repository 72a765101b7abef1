"""An optimised copy of a model that stays on its device: it loads in a third of the time and half the memory.

ONNX Runtime writes the copy at the first load, its weights in a file that is mapped. It fits only this version of the
runtime and this processor, which are in its name; and it is believed only while it has the hashes that were sealed when
it was written: a copy that a power cut left half on the disk is removed and made anew. Whoever could change it could
change the worker's memory as well: only workers of this module may write there. Called by `onnx_session`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import resource
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from agent.backends.onnx_files import external_files
from agent.backends.place import Place
from modules.errors import MALFORMED
from modules.runtime import Stage

if TYPE_CHECKING:
    import onnxruntime as ort

MODEL, WEIGHTS, SEAL = "model.onnx", "weights.bin", "seal.json"
SMALL_BYTES = 1024  # tensors below stay in the model itself
SPARE_BYTES = 64 * 1024 * 1024  # on the disk, beside the copy
_NEW = ".new-"
_FOLDER = "optimised"


class _Sealed(msgspec.Struct, frozen=True):
    size: int
    sha256: str


class Checking:
    """The hash of the weights, computed while the runtime maps them: what they are does not matter to loading."""

    def __init__(self, path: Path, sealed: _Sealed) -> None:
        self._whole = False
        self._thread = threading.Thread(target=self._check, args=(path, sealed), name="cache", daemon=True)
        self._thread.start()

    def is_whole(self) -> bool:
        self._thread.join()
        return self._whole

    def _check(self, path: Path, sealed: _Sealed) -> None:
        with contextlib.suppress(OSError):
            self._whole = _seal(path) == sealed


class Optimised:
    """The copy of one model: `folder` is there as a whole or not at all."""

    def __init__(self, folder: Path, source_bytes: int) -> None:
        self.folder = folder
        self.model = folder / MODEL
        self._source_bytes = source_bytes

    def open(self) -> Checking | None:
        """That the copy may be loaded; whether it may be believed is known when the check is through. None where there
        is none, or one that is damaged already at first sight: that is removed.
        """
        if not self.folder.is_dir():
            return None
        try:
            sealed = msgspec.json.decode((self.folder / SEAL).read_bytes(), type=dict[str, _Sealed])
            if _seal(self.model) != sealed[MODEL] or {named.location for named in external_files(self.model)} - {
                WEIGHTS
            }:
                raise ValueError("the copy is not what was sealed")
            weights = self.folder / WEIGHTS
            if weights.stat().st_size != sealed[WEIGHTS].size:  # the runtime maps what is named
                raise ValueError("the weights are not what was sealed")
            return Checking(weights, sealed[WEIGHTS])
        except (OSError, KeyError, ValueError, *MALFORMED):
            self.drop()
            return None

    def has_room(self) -> bool:
        """Whether a copy may be written: within the limit of a file, and of the disk."""
        needed = self._source_bytes + self._source_bytes // 4
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        if limit != resource.RLIM_INFINITY and needed > limit:
            return False
        try:
            return shutil.disk_usage(self.folder.parent).free > needed + SPARE_BYTES
        except OSError:
            return False

    @contextlib.contextmanager
    def writing(self, options: ort.SessionOptions) -> Iterator[None]:
        """Has the session that is made inside write the copy, seals it, and puts it in place. Raises OSError.

        Nothing is synced: what a power cut spoils does not have its hash.
        """
        fresh = Path(tempfile.mkdtemp(prefix=_NEW, dir=self.folder.parent))
        try:
            options.optimized_model_filepath = str(fresh / MODEL)
            entry = options.add_session_config_entry
            entry("session.optimized_model_external_initializers_file_name", WEIGHTS)
            entry("session.optimized_model_external_initializers_min_size_in_bytes", str(SMALL_BYTES))
            yield
            (fresh / WEIGHTS).touch()  # of a model without large tensors
            sealed = {name: _seal(fresh / name) for name in (MODEL, WEIGHTS)}
            (fresh / SEAL).write_bytes(msgspec.json.encode(sealed))
            with contextlib.suppress(OSError):  # another worker of this module was first
                os.replace(fresh, self.folder)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)

    def drop(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def find(place: Place, stage: Stage, path: Path, runtime: str) -> Optimised | None:
    """Where the copy of this stage's model is or will be; None where the module has no folder for it."""
    if place.cache is None:
        return None
    folder = place.cache / _FOLDER
    try:
        folder.mkdir(exist_ok=True)
        for left in folder.glob(f"{_NEW}*"):  # by a worker that was killed; one that writes now fails, and goes on
            shutil.rmtree(left, ignore_errors=True)
        named = {path, *(path.parent / one.location for one in external_files(path))}
        size = sum(file.stat().st_size for file in named)
    except (OSError, ValueError):
        return None
    parts = (runtime, stage.model, _processor(place.root))
    return Optimised(folder / hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32], size)


def _processor(root: Path) -> str:
    """What the processor can do: an optimised graph may be laid out for it."""
    lines = (root / "proc/cpuinfo").read_text(errors="replace").splitlines()
    told = {line.partition(":")[0].strip(): line.partition(":")[2].strip() for line in reversed(lines)}
    return "\0".join(told.get(key, "") for key in ("flags", "Features", "model name", "CPU part"))


def _seal(path: Path) -> _Sealed:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return _Sealed(file.tell(), digest)
