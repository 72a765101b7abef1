"""The encoder: makes the patch from one file of a model to another, and checks it by decoding it.

It blocks and takes seconds for large models: the hub calls it in a child process (cloud_hub.patches.build).
"""

from __future__ import annotations

import hashlib
import io
import mmap
from collections.abc import Collection
from pathlib import Path

import msgspec

from cloud_hub.patches.encode_blocks import blocks
from cloud_hub.patches.encode_layout import find_tensors
from cloud_hub.patches.encode_match import pieces
from cloud_hub.patches.encode_sections import EVERY_CODEC, uint
from cloud_hub.patches.encode_types import Buffer
from modules.errors import PatchError
from modules.patch import apply
from modules.patch.form import MAGIC, Codec


class EncodeResult(msgspec.Struct, frozen=True):
    """What was made. Sizes in bytes."""

    base_size: int
    target_size: int
    patch_size: int
    tensors: int


def encode(base: Path, target: Path, out: Path, *, codecs: Collection[Codec] = EVERY_CODEC) -> EncodeResult:
    """Writes the patch from `base` to `target` to `out`. `codecs`: those that the device can decode.

    Raises OSError of the files, and PatchError if the patch, decoded once more, does not make the target: `out` is then
    of no use.
    """
    old, new = _mapped(base), _mapped(target)
    before, after = find_tensors(old), find_tensors(new)
    with out.open("wb") as file:
        file.write(MAGIC + uint(len(old)) + uint(len(new)))
        for record in blocks(old, new, pieces(old, new, before, after), codecs):
            file.write(record)
    _check(base, target, out)
    return EncodeResult(len(old), len(new), out.stat().st_size, len(after))


def _mapped(path: Path) -> Buffer:
    with path.open("rb") as file:
        if not path.stat().st_size:
            return b""
        return mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)


def _check(base: Path, target: Path, patch: Path) -> None:
    made = hashlib.sha256()
    with target.open("rb") as file:
        wanted = hashlib.file_digest(file, "sha256")
    with base.open("rb") as old, io.BufferedReader(patch.open("rb", buffering=0)) as coded:
        apply(old, coded, made.update, target.stat().st_size)
    if made.digest() != wanted.digest():
        raise PatchError(f"the patch from {base.name} to {target.name} does not make it")
