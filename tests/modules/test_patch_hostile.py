"""The decoder against patches that are damaged or made to hurt: PatchError, within the bounds, and nothing else."""

from __future__ import annotations

import hashlib
import io
import lzma
import os
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud_hub.patches.encode import encode
from cloud_hub.patches.encode_sections import sint, uint
from modules.errors import PatchError
from modules.patch import apply
from modules.patch.codecs import LZMA_FILTERS, zstandard
from modules.patch.form import MAGIC, MAX_BLOCK, MAX_CONTROL, MAX_WINDOW_LOG, STREAM_BITS, Codec, Mode, Op
from support.golden_patch import BASE, DIGEST, PATCH, SIZE
from support.patch_by_the_book import decode
from support.patches import patched, safetensors_file

U4 = 2 << 4


def head(size: int, base: int = len(BASE)) -> bytes:
    return MAGIC + uint(base) + uint(size)


def segment(stream: int, length: int, step: int | None = None) -> bytes:
    return uint(length << STREAM_BITS | stream) + (b"" if step is None else sint(step))


def block(control: bytes, forms: bytes = b"", bodies: bytes = b"", *, length: int | None = None) -> bytes:
    size = uint(len(control) if length is None else length)
    return bytes([Op.BLOCK]) + size + bytes([Codec.RAW]) + control + uint(len(forms)) + forms + bodies


def coded(codec: Codec, data: bytes) -> bytes:
    return bytes([codec]) + uint(len(data)) + data


def plain(length: int, section: bytes) -> bytes:
    return block(segment(1, length), bytes([Mode.BYTES]), section)


def deflate(data: bytes) -> bytes:
    state = zlib.compressobj(9, zlib.DEFLATED, -15)
    return state.compress(data) + state.flush()


def test_patches_of_the_first_release_are_read_for_ever() -> None:
    """Made once, of every codec, mode and width."""
    assert hashlib.sha256(patched(BASE, PATCH, SIZE)).hexdigest() == DIGEST


def test_the_page_about_the_format_is_enough_to_write_a_decoder() -> None:
    assert hashlib.sha256(decode(BASE, PATCH)).hexdigest() == DIGEST


def test_every_cut_is_noticed() -> None:
    for end in range(0, len(PATCH), 7):
        with pytest.raises(PatchError):
            patched(BASE, PATCH[:end], SIZE)


def _no_byte(data: bytes) -> None:
    raise AssertionError(f"{len(data)} bytes were written")


@pytest.mark.parametrize("size", [0, SIZE - 1, SIZE + 1, 1 << 62])
def test_a_target_of_another_size_is_refused_before_a_byte_is_written(size: int) -> None:
    with pytest.raises(PatchError, match="another size"):
        apply(io.BytesIO(BASE), io.BytesIO(PATCH), _no_byte, size)


@pytest.mark.parametrize("base", [b"", BASE[:-1], BASE + b"x"])
def test_a_base_of_another_size_is_refused_before_a_byte_is_written(base: bytes) -> None:
    with pytest.raises(PatchError, match="base of another size"):
        apply(io.BytesIO(base), io.BytesIO(PATCH), _no_byte, SIZE)


BOMB = bytes(50 << 20)
TINY_ZSTD = zstandard().compress(b"x" * 10, 3)
WIDE = zstandard().ZstdCompressor(options={zstandard().CompressionParameter.window_log: MAX_WINDOW_LOG + 1})
WIDE_ZSTD = WIDE.compress(b"x" * 10) + WIDE.flush()
HOSTILE = {
    "nothing": b"",
    "another magic": b"MPT\x02" + PATCH[4:],
    "no record": head(10),
    "an unknown record": head(10) + b"\x07",
    "bytes after the end": PATCH + b"\x00",
    "a number without an end": MAGIC + b"\xff" * 30,
    "a segment number without an end": head(10) + block(b"\xff" * 30),
    "segments that end within a number": head(10) + block(segment(0, 10, 0) + b"\x80"),
    "no segment": head(10) + block(b""),
    "too many segments": head(10) + block(b"", length=MAX_CONTROL + 1),
    "an empty segment": head(10) + block(segment(0, 0, 0)),
    "a segment behind the target": head(10) + block(segment(0, 11, 0)),
    "two segments behind the target": head(10) + block(segment(0, 9, 0) + segment(0, 9, 0)),
    "a segment of no stream": head(10) + block(segment(3, 10)),
    "a reference without a place": head(10) + block(segment(0, 10)),
    "a reference before the base": head(10) + block(segment(0, 10, -1)),
    "a reference behind the base": head(10) + block(segment(0, 10, len(BASE) - 9)),
    "a reference far behind the base": head(10) + block(segment(0, 10, 1 << 65)),
    "half an element": head(10) + block(segment(1, 10), bytes([Mode.NEW_FLOAT | U4])),
    "a stream that nobody uses": head(10) + block(segment(0, 10, 0), bytes([Mode.BYTES])),
    "too many streams": head(10) + block(segment(0, 10, 0), bytes(32)),
    "an unknown mode": head(10) + block(segment(1, 10), b"\x0f"),
    "a form with a bit too many": head(10) + block(segment(1, 10), b"\x80"),
    "wide bytes": head(12) + block(segment(1, 12), bytes([Mode.BYTES | U4])),
    "more than a block may hold": head(MAX_BLOCK + 1) + plain(MAX_BLOCK + 1, bytes([Codec.ZERO])),
    "an unknown codec": head(10) + plain(10, b"\x63\x01\x01"),
    "more zero bits than there are": head(4) + block(segment(1, 4), bytes([Mode.NEW_FLOAT | U4]), b"\x20\xff\x00"),
    "a shift of all bits": head(4) + block(segment(1, 4), bytes([Mode.NEW_FLOAT | U4]), b"\x00\xff\x20\x00"),
    "magnitudes of no base": head(4) + block(segment(1, 4), bytes([Mode.NEW_FLOAT | U4]), b"\x00\x17\x00\x00\x00"),
    "magnitudes of no bits": head(4) + block(segment(1, 4, 0), bytes([Mode.FLOAT | U4]), b"\x00\x20\x00\x00\x00"),
    "a prefix outside the base": head(10) + plain(10, bytes([Codec.ZSTD_PREFIX]) + uint(len(BASE)) + uint(9)),
    "a prefix of everything": head(10) + plain(10, bytes([Codec.ZSTD_PREFIX]) + uint(0) + uint(1 << 40)),
    "a prefix of nothing": head(10) + plain(10, bytes([Codec.ZSTD_PREFIX]) + uint(0) + coded(Codec.ZERO, TINY_ZSTD)),
    "a prefix for segments": head(10) + bytes([Op.BLOCK]) + uint(9) + bytes([Codec.ZSTD_PREFIX]) + uint(0) + uint(64),
    "deflate that makes more": head(10) + plain(10, coded(Codec.DEFLATE, deflate(bytes(11)))),
    "deflate that makes less": head(10) + plain(10, coded(Codec.DEFLATE, deflate(bytes(9)))),
    "deflate with bytes behind": head(10) + plain(10, coded(Codec.DEFLATE, deflate(bytes(10)) + b"x")),
    "deflate cut": head(900) + plain(900, coded(Codec.DEFLATE, deflate(BASE[:900])[:-9])),
    "zstd of more": head(9) + plain(9, coded(Codec.ZSTD, TINY_ZSTD)),
    "zstd of two frames": head(20) + plain(20, coded(Codec.ZSTD, TINY_ZSTD * 2)),
    "a compressed section longer than its bytes": head(10) + plain(10, bytes([Codec.ZSTD]) + uint(1 << 50)),
    "a deflate bomb": head(10) + plain(10, coded(Codec.DEFLATE, deflate(BOMB)[:1000])),
    "a zstd bomb": head(10) + plain(10, coded(Codec.ZSTD, zstandard().compress(BOMB, 3)[:1000])),
    "an lzma bomb": head(10)
    + plain(10, coded(Codec.LZMA, lzma.compress(BOMB[: 5 << 20], lzma.FORMAT_RAW, filters=LZMA_FILTERS)[:1000])),
    "a window larger than allowed": head(10) + plain(10, coded(Codec.ZSTD, WIDE_ZSTD)),
    "a frame of nothing": head(10) + bytes([Op.FRAME]) + uint(0) + bytes([Codec.RAW]) + uint(0),
    "a frame behind the target": head(10) + bytes([Op.FRAME]) + uint(11) + bytes([Codec.RAW]) + uint(11) + bytes(11),
    "a sparse frame": head(10) + bytes([Op.FRAME]) + uint(10) + bytes([Codec.SPARSE]) + uint(0),
    "a frame of more": head(9) + bytes([Op.FRAME]) + uint(9) + coded(Codec.ZSTD, TINY_ZSTD),
    "a frame of less": head(11) + bytes([Op.FRAME]) + uint(11) + coded(Codec.ZSTD, TINY_ZSTD),
    "a frame with bytes behind": head(10) + bytes([Op.FRAME]) + uint(10) + coded(Codec.ZSTD, TINY_ZSTD + b"x"),
    "a plain frame of another length": head(10) + bytes([Op.FRAME]) + uint(10) + coded(Codec.RAW, bytes(9)),
    "sparse bytes behind the end": head(10)
    + plain(10, bytes([Codec.SPARSE]) + uint(1) + uint(1) + b"\x01\x0a" + b"\x00"),
    "sparse bytes without gaps": head(10)
    + plain(10, bytes([Codec.SPARSE]) + uint(2) + uint(1) + b"\x01\x00" + b"\x00"),
    "more sparse bytes than bytes": head(10) + plain(10, bytes([Codec.SPARSE]) + uint(11) + uint(11)),
    "sparse within sparse": head(10) + plain(10, bytes([Codec.SPARSE]) + uint(1) + uint(1) + bytes([Codec.SPARSE])),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_does_not_fit_is_refused(name: str) -> None:
    patch = HOSTILE[name]
    for size in (0, 4, 9, 10, 11, 12, 20, 900, SIZE, MAX_BLOCK + 1):
        written: list[int] = []
        with pytest.raises(PatchError):
            apply(io.BytesIO(BASE), io.BytesIO(patch), lambda data: written.append(len(data)), size)  # noqa: B023
        assert sum(written) <= size


def test_prefixes_without_end_are_refused() -> None:
    """Reading the base again and again for a byte each would be hours of work in a small patch."""
    size = 20_000
    section = bytes([Codec.ZSTD_PREFIX]) + uint(0) + uint(len(BASE)) + coded(Codec.ZERO, zstandard().compress(b"x"))[1:]
    with pytest.raises(PatchError, match="the length of a prefix is 4096, more than"):
        patched(BASE, head(size) + plain(1, section) * size, size)


def refused_or_made(patch: bytes) -> None:
    """PatchError or the size; never a byte more, and no other exception."""
    written = 0

    def write(data: bytes) -> None:
        nonlocal written
        written += len(data)
        assert written <= SIZE

    try:
        apply(io.BytesIO(BASE), io.BytesIO(patch), write, SIZE)
    except PatchError:
        return
    assert written == SIZE


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    data = bytearray(PATCH)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(4, len(data) - 1))
        match draw(st.sampled_from(["flip", "set", "cut", "insert"])):
            case "flip":
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "set":
                data[at] = draw(st.sampled_from([0, 1, 2, 3, 4, 5, 6, 127, 128, 255]))
            case "cut":
                del data[at : at + draw(st.integers(1, 9))]
            case _:
                data[at:at] = draw(st.binary(min_size=1, max_size=12))
        if len(data) < 8:
            break
    return bytes(data)


ANY = st.one_of(damaged(), st.binary(max_size=400).map(lambda data: head(SIZE) + data), st.binary(max_size=100))


@given(patch=ANY)
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_refused_or_make_the_size(patch: bytes) -> None:
    refused_or_made(patch)


@pytest.mark.soak
@pytest.mark.timeout(1_800)
@given(patch=ANY)
@settings(max_examples=30_000, deadline=None)
def test_any_bytes_are_refused_or_make_the_size_for_long(patch: bytes) -> None:
    refused_or_made(patch)


def test_a_patch_that_needs_zstandard_says_so_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "backports.zstd", None)
    monkeypatch.setitem(sys.modules, "compression.zstd", None)
    monkeypatch.delattr("backports.zstd", raising=False)
    with pytest.raises(PatchError, match="Zstandard, which is not installed"):
        patched(BASE, PATCH, SIZE)


CHILD = """
import sys
from pathlib import Path
from modules.patch import apply
base, patch, size = sys.argv[1:]
with open(base, "rb") as old, open(patch, "rb") as coded, open("/dev/null", "wb") as out:
    apply(old, coded, out.write, int(size))
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def test_a_process_that_decodes_stays_within_64_mib(tmp_path: Path) -> None:
    """With a large model, and with the most that one block and one frame may ask for."""
    random = np.random.default_rng(1)
    old = random.standard_normal(5_000_000, "f4")
    new = old * (1 + random.standard_normal(len(old), "f4") * np.float32(1e-3))
    base, target, patch = tmp_path / "base", tmp_path / "target", tmp_path / "patch"
    base.write_bytes(safetensors_file({"w": old}))
    target.write_bytes(safetensors_file({"w": new}))
    encode(base, target, patch)
    size = target.stat().st_size + (12 << 20)
    zstd = zstandard()
    options = {zstd.CompressionParameter.window_log: 23, zstd.CompressionParameter.compression_level: 1}
    prefix = zstd.ZstdDict(base.read_bytes()[: 4 << 20], is_raw=True).as_prefix
    frame = zstd.compress(os.urandom(12 << 20), options=options, zstd_dict=prefix)
    records = patch.read_bytes()[len(head(size, base.stat().st_size)) :]
    last = bytes([Op.FRAME]) + uint(12 << 20) + bytes([Codec.ZSTD_PREFIX]) + uint(0) + uint(4 << 20) + uint(len(frame))
    patch.write_bytes(head(size, base.stat().st_size) + records + last + frame)
    run = subprocess.run(
        [sys.executable, "-c", CHILD, str(base), str(patch), str(size)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert int(run.stdout) / 1024 < 64
