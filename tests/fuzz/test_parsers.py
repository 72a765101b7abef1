"""Every parser of outside bytes: it refuses with its own error or understands, whatever comes. See `fuzz.targets`."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz.targets import TARGETS

DEEP = {
    "list": b"[" * 100_000,
    "object": b'{"a":' * 100_000,
    "array": b"\x91" * 100_000,
    "map": b"\x81\xa1a" * 100_000,
    "huge array": b"\xdd\xff\xff\xff\xff",
    "huge bytes": b"\xc6\xff\xff\xff\xff",
}


@st.composite
def damaged(draw: st.DrawFn, good: bytes) -> bytes:
    """Good bytes with a few edits: what a parser that looks no further than the first error would let through."""
    data = bytearray(good)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        end = min(len(data), at + draw(st.integers(1, 8)))
        match draw(st.sampled_from(["set", "cut", "insert", "twice", "end"])):
            case "set":
                data[at:end] = draw(st.binary(min_size=end - at, max_size=end - at))
            case "cut":
                del data[at:end]
            case "insert":
                data[at:at] = draw(st.binary(min_size=1, max_size=16))
            case "twice":
                data[at:at] = data[at:end] * draw(st.integers(1, 40))
            case _:
                del data[at:]
    return bytes(data)


def inputs(name: str) -> st.SearchStrategy[bytes]:
    corpus = [damaged(good) for good in TARGETS[name].corpus]
    return st.one_of(st.binary(max_size=200), *corpus)


@pytest.mark.parametrize("name", TARGETS)
def test_good_bytes_are_understood(name: str) -> None:
    for good in TARGETS[name].corpus:
        TARGETS[name].run(good)


@pytest.mark.parametrize("name", TARGETS)
@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_bytes_are_refused_or_understood(name: str, data: st.DataObject) -> None:
    TARGETS[name].run(data.draw(inputs(name)))


@pytest.mark.parametrize("deep", DEEP)
@pytest.mark.parametrize("name", TARGETS)
def test_what_is_nested_without_end_or_claims_to_be_enormous_is_refused(name: str, deep: str) -> None:
    """Row 65's inputs, at the device's own borders."""
    TARGETS[name].run(DEEP[deep])


@pytest.mark.soak
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", TARGETS)
@given(data=st.data())
@settings(max_examples=20_000, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_bytes_for_long(name: str, data: st.DataObject) -> None:
    TARGETS[name].run(data.draw(inputs(name)))


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed")
@pytest.mark.parametrize("name", TARGETS)
def test_any_bytes_that_coverage_leads_to(name: str, tmp_path: Path) -> None:
    command = [sys.executable, str(Path(__file__).parent / "device.py"), name, "-max_total_time=60", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
