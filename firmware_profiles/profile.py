"""What a device offers, what a module requires, and why the two may not fit.

Pure values and one pure function. Probing a real machine is `agent.probe`; the list of known devices is
`firmware_profiles.catalog`. Called by the agent before it downloads and by the hub when it plans.
"""

from __future__ import annotations

import re

import msgspec

from firmware_profiles.confinement import Confinement

# One spelling for ids that end up in certificates, topics, paths and TUF custom fields.
NAME_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,62}$"


class Accelerator(msgspec.Struct, frozen=True, forbid_unknown_fields=False):
    """One accelerator of a device. `kind` is the word modules ask for: cuda, edgetpu, fpga, openvino, qnn. `driver` is
    what drives it, and its version.
    """

    kind: str
    name: str = ""
    memory_mib: int = 0
    driver: str = ""


class Processor(msgspec.Struct, frozen=True):
    """`features` are those that runtimes choose their kernels by, such as avx2, avx512-vnni, amx-int8, dotprod, i8mm.
    `mhz` is the fastest core's most; 0 and empty are unknown.
    """

    model: str = ""
    cores: int = 0
    features: tuple[str, ...] = ()
    mhz: int = 0


class DeviceProfile(msgspec.Struct, frozen=True):
    """What a device is: the class it belongs to (`name`, also its TUF hardware id) and what it has.

    Memory and disk are MiB in total; zero means unknown, and unknown never refuses a module. `confinement` is the
    highest level its agent reaches, as a word of `Confinement`; `python` the version of its interpreter (3.11), which
    libraries that a module brings are built for. `board`, `kernel` and `processor` are for people: no module requires
    them.
    """

    name: str
    arch: str
    os: str = "linux"
    description: str = ""
    accelerators: tuple[Accelerator, ...] = ()
    memory_mib: int = 0
    disk_mib: int = 0
    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    agent_version: str = ""
    confinement: str = ""
    python: str = ""
    board: str = ""
    kernel: str = ""
    processor: Processor = Processor()

    def __post_init__(self) -> None:
        if not re.fullmatch(NAME_PATTERN, self.name):
            raise ValueError(f"profile name {self.name!r}: expected lower-case letters, digits, '-' and '_'")


class Requirements(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a module requires of a device. Empty tuples and zeros ask for nothing. `confinement` is the lowest level
    at which it may run, `python` the versions of the interpreter that its own libraries are built for.

    Unknown fields are refused: an agent that does not know a requirement cannot say that it is met. Therefore what
    asks for nothing is not written, and a module that asks for nothing new runs on older agents.
    """

    arch: tuple[str, ...] = ()
    os: tuple[str, ...] = ()
    hardware_ids: tuple[str, ...] = ()
    accelerators: tuple[str, ...] = ()
    memory_mib: int = 0
    disk_mib: int = 0
    agent_version: str = ""
    confinement: Confinement = Confinement.UNKNOWN
    python: tuple[str, ...] = ()


class Reason(msgspec.Struct, frozen=True):
    """One requirement that a device does not meet."""

    key: str
    expected: str
    got: str

    def __str__(self) -> str:
        return f"{self.key}: expected {self.expected}, got {self.got}"


def why_not(requires: Requirements, profile: DeviceProfile) -> list[Reason]:
    """Every reason why a module with `requires` cannot run on `profile`; empty means that it can."""
    reasons = [
        _one_of("arch", requires.arch, profile.arch),
        _one_of("os", requires.os, profile.os),
        _one_of("hardware_id", requires.hardware_ids, profile.name),
        _at_least("memory_mib", requires.memory_mib, profile.memory_mib),
        _at_least("disk_mib", requires.disk_mib, profile.disk_mib),
        _version("agent_version", requires.agent_version, profile.agent_version),
        _level("confinement", requires.confinement, Confinement.of(profile.confinement)),
        _one_of("python", requires.python, profile.python) if profile.python else None,
    ]
    kinds = {accelerator.kind for accelerator in profile.accelerators}
    missing = (kind for kind in requires.accelerators if kind not in kinds)
    reasons.extend(Reason("accelerator", kind, ", ".join(sorted(kinds)) or "none") for kind in missing)
    return [reason for reason in reasons if reason is not None]


def _one_of(key: str, wanted: tuple[str, ...], have: str) -> Reason | None:
    return None if not wanted or have in wanted else Reason(key, " or ".join(wanted), have)


def _at_least(key: str, wanted: int, have: int) -> Reason | None:
    return None if have == 0 or have >= wanted else Reason(key, f"at least {wanted}", str(have))


def _version(key: str, wanted: str, have: str) -> Reason | None:
    if not wanted or not have or _numbers(have) >= _numbers(wanted):
        return None
    return Reason(key, f"at least {wanted}", have)


def _level(key: str, wanted: Confinement, have: Confinement) -> Reason | None:
    if have is Confinement.UNKNOWN or have.reaches(wanted):
        return None
    return Reason(key, f"at least {wanted.value}", have.value)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])
