"""What the agent is told: `agent.toml`, written by enrolment and read once at start; and where its files lie.

Every limit stands here, its unit in its name. The values are frozen; nothing else reads the file or the environment.
Called by `cli`, `enrol` and `service`.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from agent.asked.settings import CommandSettings
from agent.containers.settings import ContainerSettings
from agent.errors import ConfigError
from agent.metrics.settings import MetricsSettings
from agent.toml import table
from agent.transfer.schedule import parse_hours
from firmware_profiles.confinement import Confinement
from firmware_profiles.profile import DeviceProfile
from modules.errors import ModuleError

# Settings of [fetch] in 0.1: the window now follows the link.
_RETIRED = frozenset({"window_first", "window_most", "slow_ms"})
_PLACE = re.compile(
    r"((?P<device>[a-z0-9-]+)@)?((?P<host>[A-Za-z0-9._-]+)|\[(?P<six>[0-9A-Fa-f:.]+)\]):(?P<port>\d{1,5})"
)
Transport = Literal["gateway", "https", "mqtt"]


class LinkLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Deadlines of the MQTT connection. A reconnect waits between 0 and min(ceiling, first * 2**attempt) seconds.

    A connection over which nothing that was sent has been acknowledged for `unheard_s` is given up for a new one. The
    broker tells the hub that this device is gone `absent_after_s` after a connection was lost and not made again.
    """

    connect_timeout_s: float = 2.0
    answer_timeout_s: float = 15.0
    publish_timeout_s: float = 15.0
    reconnect_first_s: float = 0.5
    reconnect_ceiling_s: float = 60.0
    keepalive_s: int = 30
    unheard_s: float = 15.0
    session_expiry_s: int = 86_400
    absent_after_s: int = 5
    max_pending: int = 64


class FetchLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How files are fetched. At most `window_bytes` are under way, in blocks of at most `block_bytes`.

    `max_bytes_per_s` caps the bandwidth (0 = no cap). `hours` are when files may be fetched, by this device's clock and
    local time, such as ["22:00-06:00"] (empty = always). `transports` are tried in this order: a `gateway` next door,
    `https`, `mqtt`; what is not named is not used. `gateways` are neighbours that fetch for others, as HOST:PORT, or
    DEVICE@HOST:PORT where it must be that device. `reuse` takes chunks from the modules that are here, `patches` asks
    the hub for patches. A block has `chunk_timeout_s`. `stall_s` counts only while connected, `offline_s` bounds one
    wait for the link, `deadline_s` the whole download, but for the time outside the hours.
    """

    window_bytes: int = 16 * 1024 * 1024
    block_bytes: int = 256 * 1024
    max_bytes_per_s: int = 0
    hours: tuple[str, ...] = ()
    transports: tuple[Transport, ...] = ("gateway", "https", "mqtt")
    gateways: tuple[str, ...] = ()
    reuse: bool = True
    patches: bool = True
    chunk_timeout_s: float = 15.0
    stall_s: float = 120.0
    offline_s: float = 86_400.0
    deadline_s: float = 86_400.0
    disk_margin_bytes: int = 64 * 1024 * 1024

    def __post_init__(self) -> None:
        for text in self.hours:
            parse_hours(text)
        for text in self.gateways:
            parse_place(text)
        if self.max_bytes_per_s < 0:
            raise ValueError(f"max_bytes_per_s: expected 0 or more bytes, got {self.max_bytes_per_s}")
        if not self.transports or len(set(self.transports)) != len(self.transports):
            raise ValueError("transports: expected at least one, each once")


class GatewaySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """This device as a gateway: it fetches files for its neighbours, so that they come to the site once.

    `listen` is HOST:PORT (empty = no gateway). What was fetched for neighbours is kept in at most `cache_bytes` on the
    disk; larger files are not fetched for them. At most `connections` at a time, `requests` of them being answered,
    each within `request_s`.
    """

    listen: str = ""
    cache_bytes: int = 1024 * 1024 * 1024
    connections: int = 64
    requests: int = 16
    request_s: float = 30.0

    def __post_init__(self) -> None:
        if self.listen:
            parse_place(self.listen, device=False)
        if min(self.cache_bytes, self.connections, self.requests) < 1 or not self.request_s > 0:
            raise ValueError("gateway: expected cache_bytes, connections, requests and request_s above 0")


class Place(msgspec.Struct, frozen=True):
    """Where something listens, and which device it must be (empty: any of the fleet)."""

    host: str
    port: int
    device: str = ""


def parse_place(text: str, *, device: bool = True) -> Place:
    """HOST:PORT, [IPV6]:PORT, or with `device` DEVICE@HOST:PORT. Raises ValueError."""
    match = _PLACE.fullmatch(text)
    if match is None or not 1 <= int(match["port"]) <= 65535 or (match["device"] and not device):
        raise ValueError(f"expected {'[DEVICE@]' if device else ''}HOST:PORT, got {text[:80]!r}")
    return Place(match["host"] or match["six"], int(match["port"]), match["device"] or "")


class OutboxLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What may wait on this device for the hub. Beyond its bounds the oldest entries are dropped, counted by reason.

    Each stream has its bytes and its age (seconds that agents have run here; 0 = no bound); beyond `total_bytes`
    blobs of samples go first, then samples, then windows, then events. Entries are committed after `commit_every_s`;
    where no event is among them at most once in `lazy_commit_s`, or when 16 KiB have come: what a power cut loses at
    most. What the hub has acknowledged is forgotten with the next commit, after `forget_s` at the latest. Space is
    given back to the file system every `tidy_every_s`.
    """

    total_bytes: int = 256 * 1024 * 1024
    window_bytes: int = 32 * 1024 * 1024
    sample_bytes: int = 256 * 1024 * 1024
    blob_bytes: int = 128 * 1024 * 1024
    event_bytes: int = 4 * 1024 * 1024
    window_age_s: float = 30 * 86_400.0
    sample_age_s: float = 7 * 86_400.0
    blob_age_s: float = 7 * 86_400.0
    event_age_s: float = 30 * 86_400.0
    commit_every_s: float = 0.1
    lazy_commit_s: float = 60.0
    forget_s: float = 300.0
    tidy_every_s: float = 600.0
    ack_timeout_s: float = 30.0
    batches_in_flight: int = 4


class ServingSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where endpoints listen (TCP on `host` beside the Unix socket; empty = Unix socket only) and worker deadlines.

    `confine` switches the worker's confinement off where a kernel cannot do it; `uid_first` is the first user id given
    to workers when the agent runs as root (0 = workers keep the agent's user). `isolation`: whether workers are started
    in namespaces of their own (by bubblewrap), where that works (auto), never (off), or else not at all (require).
    `confinement_floor` is the level below which no module is run, whatever it asks for itself. `preload`: whether
    workers are forked from a process that has the libraries in memory, which makes them quick and small: from a
    device's second module on (auto), always (on), or never (off), which gives each its own layout of memory.
    `fpga_emulation`: whether an emulation may answer for FPGA modules where the board cannot, also when a module does
    not ask for it; it is always reported. `cache_mib` bounds what the runtimes may keep compiled for one module, such
    as an optimised copy of its model or a TensorRT engine (0 = nothing is kept). `token`: whether clients must show the
    token in `endpoints/token` on TCP; `group` may read it, and use the Unix sockets. `users` are the user ids that may
    use the Unix sockets, beside root and the agent's own (empty = all whom the file's mode lets). `shared_memory`:
    whether clients may pass tensors in /dev/shm, which opens that folder to modules. `sources` is what modules may take
    inputs from by themselves: paths of folders, video files and cameras, `write:` and a folder for their results,
    `mqtt:host:port`, `gstreamer` (empty = nothing).

    `pin` keeps modules away from the first processor, and those of low priority on the upper half of the others (on).
    `gpu_memory_mib` is what a module may take of an accelerator's memory that says nothing itself (0 = no limit). A
    module that crashes `quarantine_after` times within `quarantine_window_s` is left alone for `quarantine_s`, then
    tried again (0 crashes = never left alone).
    """

    host: str = "127.0.0.1"
    confine: bool = True
    uid_first: int = 60_800
    isolation: Literal["auto", "off", "require"] = "auto"
    confinement_floor: Confinement = Confinement.UNKNOWN
    preload: Literal["auto", "on", "off"] = "auto"
    fpga_emulation: bool = False
    token: bool = False
    group: str = ""
    users: tuple[int, ...] = ()
    shared_memory: bool = False
    sources: tuple[str, ...] = ()
    cache_mib: int = 1024
    pin: Literal["on", "off"] = "off"
    gpu_memory_mib: int = 0
    quarantine_after: int = 10
    quarantine_window_s: float = 600.0
    quarantine_s: float = 6 * 3600.0
    drain_s: float = 10.0
    ping_every_s: float = 5.0
    ping_timeout_s: float = 10.0
    restart_first_s: float = 0.5
    restart_ceiling_s: float = 60.0

    @property
    def floor(self) -> Confinement:
        """The lowest level at which modules may run here."""
        return Confinement.ISOLATED if self.isolation == "require" else self.confinement_floor


class HeatSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When modules give way to heat: looked at every `every_s` seconds (0 = never), by the warmest sensor.

    From `warm_c` degrees on modules of low priority get half of the processors that they might have; from `hot_c` on
    they answer 503, and only modules of high priority take inputs of their own and have all that they might have. A
    state is left `hysteresis_c` below where it begins. `zones` are patterns of the sensors that count, such as cpu*
    (empty = all).
    """

    every_s: float = 10.0
    warm_c: float = 80.0
    hot_c: float = 92.0
    hysteresis_c: float = 5.0
    zones: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not (self.warm_c <= self.hot_c and self.hysteresis_c >= 0 and self.every_s >= 0):
            raise ValueError("heat: expected warm_c up to hot_c, hysteresis_c and every_s from 0 on")


class UpdateLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The update machine: how often to look without a doorbell, and how many tries before an update is failed.

    A module in probation may fail `error_factor` times as often and be `latency_factor` times as slow as the one that
    it replaces, beyond chance; 0 does not compare. A manifest's own word goes before. `check_memory` refuses to try
    modules whose spare workers do not fit into the memory that is available.
    """

    poll_s: float = 900.0
    retry_first_s: float = 5.0
    retry_ceiling_s: float = 600.0
    max_attempts: int = 5
    keep_slots: int = 2
    error_factor: float = 2.0
    latency_factor: float = 2.0
    check_memory: bool = True


class ReportLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How often the device manifest goes to the hub: on change after `debounce_s`, and every `every_s`."""

    debounce_s: float = 0.2
    every_s: float = 300.0


class RenewalLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The certificate's renewal, at `due_at` of its life (give or take a twentieth).

    Without a connection for `offline_s` it is asked for over HTTPS. A new certificate has `connect_s` to connect; when
    it fails `rejections` times while the old one connects, another is asked for.
    """

    retry_first_s: float = 10.0
    retry_ceiling_s: float = 900.0
    offline_s: float = 60.0
    connect_s: float = 30.0
    rejections: int = 3
    due_at: float = 2 / 3


class AgentConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole of `agent.toml`. `profile` is what the device enrolled as; its name is the hardware id."""

    device: str
    hub: str
    mqtt_host: str
    mqtt_port: int
    profile: DeviceProfile
    link: LinkLimits = LinkLimits()
    fetch: FetchLimits = FetchLimits()
    gateway: GatewaySettings = GatewaySettings()
    outbox: OutboxLimits = OutboxLimits()
    serving: ServingSettings = ServingSettings()
    heat: HeatSettings = HeatSettings()
    update: UpdateLimits = UpdateLimits()
    report: ReportLimits = ReportLimits()
    renewal: RenewalLimits = RenewalLimits()
    containers: ContainerSettings = ContainerSettings()
    metrics: MetricsSettings = MetricsSettings()
    commands: CommandSettings = CommandSettings()

    @classmethod
    def load(cls, paths: StatePaths) -> AgentConfig:
        """Raises ConfigError: key not-enrolled when there is no file, config-invalid with the field otherwise."""
        try:
            text = paths.config.read_text()
        except FileNotFoundError as error:
            raise ConfigError(f"{paths.config}: this device is not enrolled yet", "not-enrolled") from error
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{paths.config}: {error}") from error
        try:
            return msgspec.convert(_without_retired(tomllib.loads(text)), cls)
        except (tomllib.TOMLDecodeError, msgspec.ValidationError, ModuleError, ValueError) as error:
            raise ConfigError(f"{paths.config}: {error}") from error

    def to_toml(self) -> str:
        """The file's text, complete: what is not said here has its default."""
        lines = ["# Written by `mooring-agent enroll`. Limits may be changed; the agent reads them at start.", ""]
        table("", msgspec.to_builtins(self), lines)
        return "\n".join(lines).strip() + "\n"


@dataclass(frozen=True)
class StatePaths:
    """Where the agent's files lie below its state directory."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "agent.toml"

    @property
    def identity(self) -> Path:
        return self.root / "identity"

    @property
    def key(self) -> Path:
        return self.identity / "device.key"

    @property
    def certificate(self) -> Path:
        return self.identity / "device.crt"

    @property
    def next(self) -> Path:
        """A new key and certificate, until they have been used once."""
        return self.identity / "next"

    @property
    def next_key(self) -> Path:
        return self.next / "device.key"

    @property
    def next_certificate(self) -> Path:
        return self.next / "device.crt"

    @property
    def server_ca(self) -> Path:
        return self.identity / "server-ca.crt"

    @property
    def device_ca(self) -> Path:
        """Authorities of the fleet's devices: by these, neighbours know each other."""
        return self.identity / "device-ca.crt"

    @property
    def roots(self) -> Path:
        return self.root / "roots"

    @property
    def metadata(self) -> Path:
        return self.root / "metadata"

    @property
    def database(self) -> Path:
        return self.root / "agent.sqlite3"

    @property
    def staging(self) -> Path:
        return self.root / "staging"

    @property
    def gateway(self) -> Path:
        """What was fetched for neighbours."""
        return self.root / "gateway"

    @property
    def slots(self) -> Path:
        return self.root / "slots"

    @property
    def logs(self) -> Path:
        """What workers print, and the newest lines of the agent's own log."""
        return self.root / "logs"

    @property
    def endpoints(self) -> Path:
        return self.root / "endpoints"

    @property
    def token(self) -> Path:
        """What clients of modules show on TCP, where they must."""
        return self.endpoints / "token"

    @property
    def evidence(self) -> Path:
        """What is known of modules that crashed, and which are left alone."""
        return self.root / "evidence"

    @property
    def status(self) -> Path:
        return self.root / "status.json"


def _without_retired(said: dict[str, object]) -> dict[str, object]:
    """Enrolment writes every setting, so files of older agents have those that are no more."""
    fetch = said.get("fetch")
    if not isinstance(fetch, dict):
        return said
    return {**said, "fetch": {name: value for name, value in fetch.items() if name not in _RETIRED}}
