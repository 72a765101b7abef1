"""The encoder: makes the patch from one file of a model to another, and checks it by decoding it.

It blocks and takes seconds for large models: the hub calls it in a child process (cloud_hub.patches.build).
"""

from __future__ import annotations

import hashlib
import mmap
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from cloud_hub.patches.encode_blocks import blocks
from cloud_hub.patches.encode_frames import frame, worth_a_frame
from cloud_hub.patches.encode_layout import find_external, find_tensors
from cloud_hub.patches.encode_match import pieces
from cloud_hub.patches.encode_sections import EVERY_CODEC, uint
from cloud_hub.patches.encode_types import Buffer, Piece, Tensor
from modules.errors import PatchError
from modules.patch import apply
from modules.patch.form import MAGIC, Codec


class External(NamedTuple):
    """An ONNX model, and what it calls the file with its tensors."""

    model: Path
    location: str

    def tensors(self, size: int) -> list[Tensor]:
        """Those in that file, of `size` bytes."""
        return find_external(_mapped(self.model), self.location, size)


class EncodeResult(msgspec.Struct, frozen=True):
    """What was made. Sizes in bytes; the last three say how the target's bytes are told and add up to its size."""

    base_size: int
    target_size: int
    patch_size: int
    tensors: int
    # One compressed frame was smaller than blocks, as it is for files that hold no tensors.
    framed: bool
    referred: int
    different: int
    new: int


def encode(
    base: Path,
    target: Path,
    out: Path,
    *,
    codecs: Collection[Codec] = EVERY_CODEC,
    graphs: tuple[External, External] | None = None,
) -> EncodeResult:
    """Writes the patch from `base` to `target` to `out`.

    `codecs`: those that the device can decode. `graphs`: the ONNX models whose tensors base and target hold, if they
    are external data; without them the elements are guessed. Raises OSError of the files, and PatchError if the
    patch, decoded once more, does not make the target: `out` is then of no use.
    """
    old, new = _mapped(base), _mapped(target)
    before, after = (
        [graph.tensors(len(data)) for graph, data in zip(graphs, (old, new), strict=True)]
        if graphs
        else [find_tensors(old), find_tensors(new)]
    )
    told: Counter[str] = Counter()
    head = MAGIC + uint(len(old)) + uint(len(new))
    with out.open("wb") as file:
        file.write(head)
        for record in blocks(old, new, _counted(pieces(old, new, before, after), told), codecs):
            file.write(record)
        size = file.tell()
    framed = False
    if worth_a_frame(len(old), len(new), size, told["plain"]):
        whole = frame(old, new, codecs)
        if framed := len(head) + len(whole) < size:
            out.write_bytes(head + whole)
    _check(base, target, out)
    fresh = told["plain"] + told["new"]
    return EncodeResult(
        base_size=len(old),
        target_size=len(new),
        patch_size=out.stat().st_size,
        tensors=len(after),
        framed=framed,
        referred=0 if framed else told["referred"],
        different=0 if framed else told["different"],
        new=len(new) if framed else fresh,
    )


def _counted(made: Iterable[Piece], told: Counter[str]) -> Iterator[Piece]:
    for piece in made:
        if piece.element is None:
            told["plain" if piece.base is None else "referred"] += piece.length
        else:
            told["new" if piece.base is None else "different"] += piece.length
        yield piece


def _mapped(path: Path) -> Buffer:
    with path.open("rb") as file:
        if not path.stat().st_size:
            return b""
        return mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)


def _check(base: Path, target: Path, patch: Path) -> None:
    made = hashlib.sha256()
    with target.open("rb") as file:
        wanted = hashlib.file_digest(file, "sha256")
    with base.open("rb") as old, patch.open("rb") as coded:
        apply(old, coded, made.update, target.stat().st_size)
    if made.digest() != wanted.digest():
        raise PatchError(f"the patch from {base.name} to {target.name} does not make it")
