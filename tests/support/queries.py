"""Devices with all kinds of facts, as rows of a database and as values in memory; and queries with what they mean.

`texts()` draws a text together with a plain function that says the same, made without the parser.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st
from sqlalchemy import Connection, insert

from cloud_hub.query import DeviceFacts, Moment
from cloud_hub.query.facts import version_number
from cloud_hub.store.tables import assignments, device_groups, devices, executions, group_members, reported_modules

NOW = 1_700_000_000.0
MOMENT = Moment(NOW, 900.0)
Says = Callable[[DeviceFacts], bool]
_TAGS = {"site": ("lyon", "paris", "Lyon", "ly_n", "l%n", "a(b)"), "line": ("1", "2", "10", "-3.5", "x", "1.", "1.2.3")}
_NUMBERS = ("memory_mib", "disk_free_mib", "temperature_c", "load", "cores")


@dataclass(frozen=True)
class Fleet:
    rows: list[dict[str, Any]]
    modules: list[dict[str, Any]]
    wanted: list[dict[str, Any]]
    members: list[dict[str, Any]]
    taking_part: list[dict[str, Any]]
    facts: list[DeviceFacts]

    def store(self, connection: Connection) -> None:
        connection.execute(
            insert(device_groups), [{"name": n, "description": "", "created_at": 0} for n in ("a1", "b2")]
        )
        for table, rows in (
            (devices, self.rows),
            (reported_modules, self.modules),
            (assignments, self.wanted),
            (group_members, self.members),
            (executions, self.taking_part),
        ):
            connection.execute(insert(table), rows)


def fleet(count: int, seed: int = 7) -> Fleet:
    """The same devices for the same seed."""
    dice = random.Random(seed)
    made = Fleet([], [], [], [], [], [])
    for number in range(count):
        _device(made, f"cam-{number:03}" if number % 3 else f"Box-{number:03}", dice)
    return made


def _device(made: Fleet, device: str, dice: random.Random) -> None:
    numbers = {name: dice.choice([None, 0, 1, 2, 512]) for name in _NUMBERS}
    tags = {name: dice.choice(values) for name, values in _TAGS.items() if dice.random() < 0.7}
    agent = dice.choice(["", "0.1.0", "0.2.0", "0.2.0.dev1", "0.10.2", "1"])
    kinds = dice.choice(["", ",cuda,", ",cuda,edgetpu,", ",fpga,"])
    times = {name: dice.choice([None, NOW - 10, NOW - 2000, NOW - 90_000]) for name in _TIMES}
    retired_at = dice.choice([None, None, None, NOW - 5])
    present = dice.choice([None, True, False])
    running = dice.choice([None, ("digits", 1), ("digits", 8)])
    shall = dice.choice([None, ("digits", 1), ("digits", 8)])
    state, verified = dice.choice(["serving", "failed", "off"]), dice.random() < 0.8
    row: dict[str, Any] = {
        "id": device, "profile": dice.choice(["jetson", "pi-5", "PI-5"]), "tags": tags, "certificate": "", "boots": [],
        "created_at": NOW - dice.choice([10, 5000]), "retired_at": retired_at, "director_version": 1,
        "report_counter": 0, "agent_version": agent, "agent_number": version_number(agent),
        "arch": dice.choice(["", "aarch64"]), "accelerators": kinds, "present": present,
        "update_state": dice.choice(["idle", "fetching"]), **numbers, **times,
    }  # fmt: skip
    made.rows.append(row)
    if running:
        made.modules.append(_module(device, running, state, verified))
    if shall:
        made.wanted.append(_assignment(device, shall))
    groups = [name for name in ("a1", "b2") if dice.random() < 0.3]
    made.members.extend({"name": name, "device": device, "added_at": 0.0} for name in groups)
    rollouts = [name for name in ("r-1", "r-2") if dice.random() < 0.3]
    made.taking_part.extend(_execution(name, device) for name in rollouts)
    same = running == shall and (shall is None or (verified and state == "serving"))
    states = {"settled" if same else "differs", "online" if _online(row) else "offline"}
    states |= {"never"} if row["report_at"] is None else set()
    states |= {"updating"} if row["update_state"] != "idle" else set()
    states |= {"failed"} if running and state == "failed" else set()
    states |= {"retired"} if retired_at else set()
    ages = {"last_seen": row["seen_at"], "enrolled": row["created_at"], "uptime": row["booted_at"]}
    known = {name: float(value) for name, value in numbers.items() if value is not None}
    known |= {name: NOW - at for name, at in ages.items() if at is not None}
    made.facts.append(
        DeviceFacts(
            device, row["profile"], tags, row["arch"], agent, groups, rollouts, states,
            [kind for kind in kinds.split(",") if kind], (), dict([running]) if running else {}, known,
        )
    )  # fmt: skip


_TIMES = ("report_at", "online_at", "offline_at", "seen_at", "booted_at")


def _online(row: dict[str, Any]) -> bool:
    if row["retired_at"] is not None:
        return False
    heard = max((row[name] for name in ("report_at", "online_at") if row[name] is not None), default=0)
    gone = row["present"] is False and not (
        row["report_at"] and row["offline_at"] and row["report_at"] - row["offline_at"] > 30
    )
    return NOW - heard <= MOMENT.offline_after_s and not gone


def _module(device: str, running: tuple[str, int], state: str, verified: bool) -> dict[str, Any]:
    name, version = running
    found = {"device": device, "module": name, "role": "main", "version": version, "manifest_sha256": ""}
    return {**found, "state": state, "verified": verified}


def _assignment(device: str, shall: tuple[str, int]) -> dict[str, Any]:
    name, version = shall
    found = {"device": device, "module": name, "version": version, "profile": "p", "mode": "serve"}
    return {**found, "role": "main", "config": {}, "deployment": "r-1", "assigned_at": 0.0}


def _execution(rollout: str, device: str) -> dict[str, Any]:
    found = {"rollout": rollout, "device": device, "group_index": 0, "state": "waiting", "director_version": 0}
    return {**found, "reason_key": "", "reason": ""}


# --- queries --------------------------------------------------------------------------------------------------------
def texts() -> st.SearchStrategy[tuple[str, Says]]:
    """A query, and what it means, said in Python."""
    return st.recursive(_conditions(), _joined, max_leaves=8)


def _joined(parts: st.SearchStrategy[tuple[str, Says]]) -> st.SearchStrategy[tuple[str, Says]]:
    def both(pair: list[tuple[str, Says]], word: str) -> tuple[str, Says]:
        text = word.join(f"({part})" for part, _ in pair)
        says = [one for _, one in pair]
        if word == " or ":
            return text, lambda device: any(one(device) for one in says)
        return text, lambda device: all(one(device) for one in says)

    def negated(part: tuple[str, Says]) -> tuple[str, Says]:
        return f"not ({part[0]})", lambda device: not part[1](device)

    several = st.lists(parts, min_size=2, max_size=3)
    return st.one_of(st.builds(both, several, st.sampled_from([" and ", " or ", ", "])), parts.map(negated))


def every_condition() -> list[tuple[str, Says]]:
    """Each fact with each value and sign."""
    equal = [
        _equal(name, value, sign) for name, (_, values) in _TEXTS.items() for value in values for sign in (True, False)
    ]
    several = [_several(name, count, inside) for name in _TEXTS for count in (1, 3) for inside in (True, False)]
    amounts = [(name, amount) for name, (_, amounts) in _AMOUNTS.items() for amount in amounts]
    return [*equal, *several, *(_compared(name, amount, sign) for name, amount in amounts for sign in _SIGNS)]


def _conditions() -> st.SearchStrategy[tuple[str, Says]]:
    return st.sampled_from([*every_condition(), ("all", lambda device: True)])


_TEXTS: dict[str, tuple[Callable[[DeviceFacts], list[str]], tuple[str, ...]]] = {
    "site": (
        lambda d: _tag(d, "site"),
        (
            "lyon",
            "l*",
            "*n",
            "l?n",
            "ly_n",
            "l%n",
            "*",
            "[l]*",
            "*y*",
            "a(b)",
            "L*",
            "*?n",
            "*[l]yon",
            "*_n",
            "*%n",
            "*Y*",
        ),
    ),
    "tag.line": (lambda d: _tag(d, "line"), ("1", "1*", "x")),
    "id": (lambda d: [d.id], ("cam-001", "cam-*", "CAM-*", "*1", "*-0*")),
    "profile": (lambda d: [d.profile], ("jetson", "pi*", "*")),
    "arch": (lambda d: [d.arch] if d.arch else [], ("aarch64", "a*")),
    "group": (lambda d: list(d.groups), ("a1", "b*", "none")),
    "rollout": (lambda d: list(d.rollouts), ("r-1", "r-*")),
    "state": (
        lambda d: list(d.states),
        ("online", "offline", "never", "differs", "settled", "updating", "failed", "retired"),
    ),
    "accelerator": (lambda d: list(d.accelerators), ("cuda", "edgetpu", "cud")),
    "agent": (lambda d: [d.agent] if d.agent else [], ("0.2.*", "*")),
}


def _tag(device: DeviceFacts, name: str) -> list[str]:
    return [device.tags[name]] if name in device.tags else []


def _naive(pattern: str, text: str) -> bool:
    if not pattern:
        return not text
    if pattern[0] == "*":
        return _naive(pattern[1:], text) or (bool(text) and _naive(pattern, text[1:]))
    return bool(text) and pattern[0] == text[0] and _naive(pattern[1:], text[1:])


def _equal(name: str, value: str, equal: bool) -> tuple[str, Says]:
    have, _ = _TEXTS[name]
    text = f"{name}{'=' if equal else ' != '}{value}"
    return text, lambda device: any(_naive(value, one) for one in have(device)) is equal


def _several(name: str, count: int, inside: bool) -> tuple[str, Says]:
    have, values = _TEXTS[name]
    some = values[:count]
    text = f"{name} {'' if inside else 'not '}in ({', '.join(some)})"
    return text, lambda device: any(_naive(value, one) for value in some for one in have(device)) is inside


_SIGNS: dict[str, Callable[[float, float], bool]] = {
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}
_AMOUNTS: dict[str, tuple[Callable[[DeviceFacts], float | None], tuple[tuple[str, float], ...]]] = {
    "memory_mib": (lambda d: d.numbers.get("memory_mib"), (("1", 1), ("512", 512), ("0", 0))),
    "load": (lambda d: d.numbers.get("load"), (("1.5", 1.5),)),
    "temperature_c": (lambda d: d.numbers.get("temperature_c"), (("-1", -1), ("2", 2))),
    "last_seen": (lambda d: d.numbers.get("last_seen"), (("20s", 20), ("2h", 7200), ("1d", 86_400))),
    "enrolled": (lambda d: d.numbers.get("enrolled"), (("1m", 60), ("1w", 604_800))),
    "uptime": (lambda d: d.numbers.get("uptime"), (("1h", 3600),)),
    "module.digits": (lambda d: d.modules.get("digits"), (("1", 1), ("8", 8))),
    "agent": (lambda d: _version(d.agent), (("0.2", 20_000), ("0.10.2", 100_002), ("1", 100_000_000))),
    "line": (lambda d: _numeric(d.tags.get("line", "")), (("2", 2), ("-3.5", -3.5), ("10", 10))),
}


def _version(text: str) -> float | None:
    known = {"0.1.0": 10_000, "0.2.0": 20_000, "0.2.0.dev1": 20_000, "0.10.2": 100_002, "1": 100_000_000}
    return known.get(text)


def _numeric(text: str) -> float | None:
    return {"1": 1.0, "2": 2.0, "10": 10.0, "-3.5": -3.5}.get(text)


def _compared(name: str, amount: tuple[str, float], sign: str) -> tuple[str, Says]:
    have, _ = _AMOUNTS[name]

    def says(device: DeviceFacts) -> bool:
        value = have(device)
        return value is not None and _SIGNS[sign](value, amount[1])

    return f"{name} {sign} {amount[0]}", says
