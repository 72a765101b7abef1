"""What a new version of a model costs on the wire: our patch against generic ones and full compression, in one run.

The cases are those of field/performance.md B4, on models built here (`_patch_models`). Peers, each once per case: full
Zstandard level 19; Zstandard level 19 with the whole base as prefix, window 2^27 and long distance matching (`zstd
--patch-from -19 --long=27`); bsdiff4. Ours three times, the check by decoding included. Times are CPU seconds of this
process. Every result is decoded and compared; the decoder's peak is VmHWM of a fresh process that decodes a model of
300 MB and every case.

`encode_speedup_over_bsdiff4` is the ratio of the sums over the cases of B4; `encode_speedup_median` the median of the
cases' ratios. `worst_over_best_generic` is the largest ratio of our bytes to the fewest of the peers'.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import bsdiff4
import numpy as np

from benchmarks._patch_models import cases
from benchmarks.common import median, report
from cloud_hub.patches.encode import encode
from modules.patch.codecs import zstandard

ROUNDS = 3
PEERS = ("zstd19", "patch_from", "bsdiff4")
LARGE_VALUES = 75_000_000
# Beyond B4: the peers see it too, the sums do not.
EXTRA = frozenset({"int8_moved_scales"})
DECODE = """
import sys, time
from pathlib import Path
from modules.patch import apply
base, patch, target = map(Path, sys.argv[1:])
place = 0
def compare(data):
    global place
    assert wanted.read(len(data)) == data
    place += len(data)
started = time.process_time()
with base.open("rb") as old, patch.open("rb") as coded, target.open("rb") as wanted:
    apply(old, coded, compare, target.stat().st_size)
assert place == target.stat().st_size
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(peak) / 1024, time.process_time() - started)
"""

Cost = tuple[int, float]  # bytes and CPU seconds


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = {case: _measure(folder, case, base, target) for case, base, target in cases()}
        large_mib, large_s = _large(folder)
    peaks = [row["decode_mib"] for row in rows.values()]
    listed = {case: row for case, row in rows.items() if case not in EXTRA}
    metrics = {
        "worst_over_best_generic": max(row["over_best_generic"] for row in rows.values()),
        "rel1e3_over_best_generic": rows["rel1e3"]["over_best_generic"],
        "encode_speedup_over_bsdiff4": _total(listed, "bsdiff4_s") / _total(listed, "encode_s"),
        "encode_speedup_median": median(row["bsdiff4_s"] / row["encode_s"] for row in listed.values()),
        "decode_peak_mib": max(*peaks, large_mib),
        "decode_mb_per_s": 4 * LARGE_VALUES / 1e6 / large_s,
    }
    extra = {f"{case}_{key}": value for case, row in rows.items() for key, value in row.items()}
    report("patch", metrics | extra)


def _total(rows: dict[str, dict[str, float]], key: str) -> float:
    return sum(row[key] for row in rows.values())


def _measure(folder: Path, case: str, base: bytes, target: bytes) -> dict[str, float]:
    zstd = _timed(lambda: _full(base, target))
    prefix = _timed(lambda: _patch_from(base, target))
    bsdiff = _timed(lambda: _bsdiff(base, target))
    ours = _ours(folder, base, target)
    mib, decode_s = _decoded(folder)
    best = min(zstd[0], prefix[0], bsdiff[0])
    row = {
        "target_bytes": len(target),
        "bytes": ours[0],
        "encode_s": ours[1],
        "decode_s": decode_s,
        "decode_mib": mib,
        "zstd19_bytes": zstd[0],
        "zstd19_s": zstd[1],
        "patch_from_bytes": prefix[0],
        "patch_from_s": prefix[1],
        "bsdiff4_bytes": bsdiff[0],
        "bsdiff4_s": bsdiff[1],
        "over_best_generic": ours[0] / best,
    }
    _say(case, row)
    return row


def _timed(make: Callable[[], int]) -> Cost:
    started = time.process_time()
    size = make()
    return size, time.process_time() - started


def _full(_: bytes, target: bytes) -> int:
    coded = zstandard().compress(target, 19)
    assert zstandard().decompress(coded) == target
    return len(coded)


def _patch_from(base: bytes, target: bytes) -> int:
    zstd = zstandard()
    prefix = zstd.ZstdDict(base, is_raw=True).as_prefix
    named = zstd.CompressionParameter
    options = {named.compression_level: 19, named.window_log: 27, named.enable_long_distance_matching: 1}
    coded = zstd.compress(target, options=options, zstd_dict=prefix)
    assert zstd.decompress(coded, prefix, {zstd.DecompressionParameter.window_log_max: 27}) == target
    return len(coded)


def _bsdiff(base: bytes, target: bytes) -> int:
    coded = bsdiff4.diff(base, target)
    assert bsdiff4.patch(base, coded) == target
    return len(coded)


def _ours(folder: Path, base: bytes, target: bytes) -> Cost:
    old, new, patch = folder / "base", folder / "target", folder / "patch"
    old.write_bytes(base)
    new.write_bytes(target)
    costs = [_timed(lambda: encode(old, new, patch).patch_size) for _ in range(ROUNDS)]
    return costs[0][0], median(seconds for _, seconds in costs)


def _decoded(folder: Path) -> tuple[float, float]:
    """Peak MiB and CPU seconds of a fresh process, which compares every byte."""
    files = [str(folder / name) for name in ("base", "patch", "target")]
    root = Path(__file__).resolve().parent.parent
    run = subprocess.run(
        [sys.executable, "-c", DECODE, *files], cwd=root, capture_output=True, text=True, check=True, timeout=300
    )
    peak, seconds = run.stdout.split()
    return float(peak), float(seconds)


def _large(folder: Path) -> tuple[float, float]:
    """300 MB in one tensor, of which the last part has moved."""
    random = np.random.default_rng(9)
    weights = random.standard_normal(LARGE_VALUES, np.float32)
    header = json.dumps(
        {"w": {"dtype": "F32", "shape": [LARGE_VALUES], "data_offsets": [0, 4 * LARGE_VALUES]}}
    ).encode()
    for name in ("base", "target"):
        with (folder / name).open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            weights.tofile(file)
        weights[LARGE_VALUES // 2 :] *= np.float32(1.0007)
    encode(folder / "base", folder / "target", folder / "patch")
    return _decoded(folder)


def _say(case: str, row: dict[str, float]) -> None:
    of = row["target_bytes"]
    peers = "  ".join(f"{name} {row[f'{name}_bytes'] / of:7.2%} {row[f'{name}_s']:5.2f} s" for name in PEERS)
    ours = f"ours {row['bytes'] / of:7.2%} {row['encode_s']:5.2f} s, decoded in {row['decode_s']:4.2f} s"
    print(f"{case:18} {ours}  {peers}  over best {row['over_best_generic']:.3f}", flush=True)


if __name__ == "__main__":
    main()
