"""Serving side by side: our worker, a bare aiohttp handler and four Python model servers, with three models.

An MLP 20-64-3, a MobileNetV2-sized convolution net and a gradient-boosted tree, each alone in each server; the same
client for all (benchmarks/load), each server asked in the quickest form that it has. Our worker runs confined, with
samples of 1 %, windows and metrics on; it is asked over shared memory (`_fast`) and feeds itself (`_sources`), too.
Start is from the spawn to the first right answer; memory (PSS) after the load; CPU is that of the server's processes.
Rounds are interleaved, so that a busy moment of the machine meets all.

`*_over_best_peer` compare with the best of the peers in that point and are the worst over the models: below 1 is ahead
for p50, memory and start, above 1 for throughput. The bare handler is shown beside them and is no peer.

    benchmarks/serving.py [--models mlp,trees,conv] [--peers mlserver,bentoml,litserve,pytriton] [--rounds 3]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import _fast, _sources
from benchmarks._servers import PEERS, Bare, Ours, Peer, Server, requests
from benchmarks._slots import MODELS, model, rows, session, write_slot
from benchmarks.common import median, report

CLIENTS = (1, 8, 32)
SECONDS = 1.5
RAW_RUNS = 400
FIRST_PORT = 18700
Points = dict[str, list[float]]  # what was measured, by its name, a value per round


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--peers", default=",".join(PEERS), help="empty: none")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    chosen = parser.parse_args()
    peers = [name for name in chosen.peers.split(",") if name]
    metrics: dict[str, float] = {}
    best: dict[str, list[float]] = defaultdict(list)
    for name in chosen.models.split(","):
        points = measure(name, peers, chosen.rounds, chosen.seconds)
        medians = {point: median(values) for point, values in points.items()}
        show(name, medians)
        metrics |= {f"{name}_{point}": value for point, value in medians.items()}
        for key, ratio in against_peers(medians, peers).items():
            best[key].append(ratio)
        metrics |= headlines(name, medians)
    if {"mlp", "conv"} <= set(chosen.models.split(",")):
        metrics |= _sources.us_per_row_mlp() | _sources.over_raw_conv()
    metrics |= {key: (min if key.startswith("throughput") else max)(ratios) for key, ratios in best.items()}
    report("serving", metrics)


def measure(name: str, peers: list[str], rounds: int, seconds: float) -> Points:
    """Every server with this model; all of them stand, and are asked in turn."""
    points: Points = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="mooring-serving-") as folder:
        place = Path(folder)
        place.chmod(0o755)
        file = place / "model.onnx"
        file.write_bytes(model(name))
        raw = session(model(name))
        row = rows(raw, 1)
        servers = _servers(name, place, raw, peers)
        try:
            _start(servers, file, row, place, points)
            for _ in range(rounds):
                points["raw_p50_us"].append(_raw(raw, row))
                for server in servers:
                    _round(server, seconds, points)
            for server in servers:
                points[f"{server.name}_pss_mib"].append(server.pss_mib())
            if name == "mlp":
                for point, value in _fast.measure(servers[0].address, name).items():
                    points[point].append(value)
        finally:
            for server in servers:
                server.stop()
    return points


def _servers(name: str, place: Path, raw: Any, peers: list[str]) -> list[Server]:
    slot = place / "slot"
    ours = Ours(place, write_slot(slot, name, raw), slot)
    bare = Bare("bare", str(place / "bare.sock"))
    return [ours, bare, *(Peer(peer, FIRST_PORT + 10 * number) for number, peer in enumerate(peers))]


def _start(servers: list[Server], file: Path, row: Any, place: Path, points: Points) -> None:
    for server in servers:
        server.requests = requests(server.name, row, place)
        if isinstance(server, Ours):
            server.start()
        elif isinstance(server, Bare | Peer):
            server.start(file)
        points[f"{server.name}_start_s"].append(server.start_s)
        server.load(8, 0.5)  # warm


def _raw(raw: Any, row: Any) -> float:
    """The runtime alone, in this process."""
    names = [node.name for node in raw.get_outputs()]
    times, end = [], time.monotonic() + 1.0
    while len(times) < RAW_RUNS and time.monotonic() < end:
        started = time.perf_counter_ns()
        raw.run(names, {"x": row})
        times.append((time.perf_counter_ns() - started) / 1000)
    return median(times)


def _round(server: Server, seconds: float, points: Points) -> None:
    for clients in CLIENTS:
        _point(server, server.name, clients, seconds, points)
    if isinstance(server, Ours):
        _point(server, "ours_loopback", 8, seconds, points, address=server.tcp)
        _point(server, "ours_json", 8, seconds, points, kind="json", address=server.tcp)


def _point(server: Server, label: str, clients: int, seconds: float, points: Points, **how: str) -> None:
    before = server.cpu_s()
    found = server.load(clients, seconds, **how)
    points[f"{label}_c{clients}_p50_us"].append(found.p50_us)
    points[f"{label}_c{clients}_p99_us"].append(found.p99_us)
    points[f"{label}_c{clients}_per_s"].append(found.per_s)
    points[f"{label}_c{clients}_cpu_us"].append((server.cpu_s() - before) / found.answers * 1e6)


def against_peers(medians: dict[str, float], peers: list[str]) -> dict[str, float]:
    """Ours over the best peer; ours over TCP counts where peers listen on TCP: the loopback point stands for it."""
    if not peers:
        return {}
    ours = {"p50": medians["ours_c1_p50_us"], "pss": medians["ours_pss_mib"], "start": medians["ours_start_s"]}
    theirs = {
        "p50": min(medians[f"{peer}_c1_p50_us"] for peer in peers),
        "pss": min(medians[f"{peer}_pss_mib"] for peer in peers),
        "start": min(medians[f"{peer}_start_s"] for peer in peers),
    }
    ratios = {f"{key}_over_best_peer": ours[key] / theirs[key] for key in ours}
    throughput = [
        medians[f"ours_c{clients}_per_s"] / max(medians[f"{peer}_c{clients}_per_s"] for peer in peers)
        for clients in CLIENTS[1:]
    ]
    return {**ratios, "throughput_over_best_peer": min(throughput)}


def headlines(name: str, medians: dict[str, float]) -> dict[str, float]:
    """The numbers with goals that are of one model."""
    if name != "mlp":
        return {}
    found = {
        "shm_overhead_us": medians["shm_overhead_us"],
        "http_cpu_us_per_request": medians["ours_loopback_c8_cpu_us"],
        "uds_cpu_us_per_request": medians["ours_c8_cpu_us"],
        "ours_over_bare_p50": medians["ours_c1_p50_us"] / medians["bare_c1_p50_us"],
    }
    if "mlserver_c8_per_s" in medians:
        found["throughput_over_mlserver"] = medians["ours_loopback_c8_per_s"] / medians["mlserver_c8_per_s"]
    return found


def show(name: str, medians: dict[str, float]) -> None:
    """A table for people."""
    print(f"{name}: raw run {medians['raw_p50_us']:.0f} us")
    labels = dict.fromkeys(key.rpartition("_c")[0] for key in medians if key.endswith("_c8_per_s"))
    print(f"{'':15} start s   MiB   c1 p50/p99 us    c8 /s c8 cpu us c8 p99 us   c32 /s")
    for label in labels:
        cell = {key: medians.get(f"{label}_{key}", float("nan")) for key in ("start_s", "pss_mib")}
        at = {key: medians.get(f"{label}_{key}", float("nan")) for key in _COLUMNS}
        print(
            f"{label:15}{cell['start_s']:8.2f}{cell['pss_mib']:6.0f}{at['c1_p50_us']:8.0f}/{at['c1_p99_us']:<7.0f}"
            f"{at['c8_per_s']:9.0f}{at['c8_cpu_us']:10.1f}{at['c8_p99_us']:10.0f}{at['c32_per_s']:9.0f}"
        )


_COLUMNS = ("c1_p50_us", "c1_p99_us", "c8_per_s", "c8_cpu_us", "c8_p99_us", "c32_per_s")

if __name__ == "__main__":
    main()
