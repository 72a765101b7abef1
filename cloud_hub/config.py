"""What an operator sets (`hub.toml`, with a twin in the environment for each setting) and where a hub keeps its files.

Nothing here opens a database or a socket. Read by `service` and `cli`; every room gets the two values passed in.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec

from cloud_hub.api.settings import ApiSettings
from cloud_hub.bucket.settings import FOLDER, BucketSettings, check_blobs
from cloud_hub.building_settings import BuildingSettings
from cloud_hub.ca_settings import CaSettings
from cloud_hub.datasets.settings import DatasetSettings
from cloud_hub.errors import BadRequest, NotFound
from cloud_hub.images.settings import ImageSettings
from cloud_hub.metrics.settings import MetricsSettings
from cloud_hub.monitoring.settings import MonitoringSettings
from cloud_hub.oidc_settings import OidcSettings
from cloud_hub.outward.settings import OutwardSettings
from cloud_hub.patch_settings import PatchSettings
from cloud_hub.replicas.settings import ReplicasSettings
from cloud_hub.retraining.settings import RetrainingSettings
from cloud_hub.transfer_settings import TransferSettings
from firmware_profiles.profile import NAME_PATTERN

ENVIRONMENT_PREFIX = "MOORING_HUB_"
CONFIG_NAME = "hub.toml"
SQLITE = "sqlite"
_TABLES = (
    "api",
    "bucket",
    "building",
    "ca",
    "datasets",
    "images",
    "metrics",
    "monitoring",
    "oidc",
    "outward",
    "patches",
    "replicas",
    "retraining",
    "transfer",
)


@dataclass(frozen=True)
class HubPaths:
    """Every file and folder of a hub directory. Private files are 0600, folders 0700."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / CONFIG_NAME

    @property
    def database(self) -> Path:
        return self.root / "hub.sqlite3"

    @property
    def database_url(self) -> str:
        return f"sqlite+aiosqlite:///{self.database}"

    @property
    def blobs(self) -> Path:
        return self.root / "blobs"

    @property
    def blob_cache(self) -> Path:
        """What was read from a bucket; it may be removed while the hub does not run."""
        return self.root / "blob-cache"

    @property
    def sample_blobs(self) -> Path:
        """Large tensors of samples."""
        return self.root / "sample-blobs"

    @property
    def patch_work(self) -> Path:
        """Patches that are being built; nothing here is needed after a start."""
        return self.root / "patch-work"

    @property
    def wheel_cache(self) -> Path:
        """Wheels that were downloaded for modules' libraries; it may be removed at any time."""
        return self.root / "wheel-cache"

    @property
    def keys(self) -> Path:
        """TUF signing keys, one PEM file per role."""
        return self.root / "keys"

    @property
    def capability_key(self) -> Path:
        """What signs the addresses and grants that devices get for files."""
        return self.keys / "capability.key"

    @property
    def outward_key(self) -> Path:
        """What seals the secrets of webhooks in the database."""
        return self.keys / "outward.key"

    @property
    def ca(self) -> Path:
        return self.root / "ca"

    @property
    def server_ca_crt(self) -> Path:
        return self.ca / "server-ca.crt"

    @property
    def server_ca_key(self) -> Path:
        return self.ca / "server-ca.key"

    @property
    def device_ca_crt(self) -> Path:
        return self.ca / "device-ca.crt"

    @property
    def device_ca_key(self) -> Path:
        return self.ca / "device-ca.key"

    @property
    def server_crt(self) -> Path:
        """Certificate of the API and of the broker."""
        return self.ca / "server.crt"

    @property
    def server_key(self) -> Path:
        return self.ca / "server.key"

    @property
    def hub_client_crt(self) -> Path:
        """The hub's own client certificate at the broker."""
        return self.ca / "hub-client.crt"

    @property
    def hub_client_key(self) -> Path:
        return self.ca / "hub-client.key"

    @property
    def broker(self) -> Path:
        return self.root / "broker"

    @property
    def crl(self) -> Path:
        """Certificates that the broker refuses."""
        return self.broker / "crl.pem"

    @property
    def roots(self) -> Path:
        """The first roots, for those who sign: image.root.json and director.root.json."""
        return self.root / "roots"

    @property
    def operator_token(self) -> Path:
        return self.root / "operator.token"

    @property
    def context(self) -> Path:
        """What the `mooring` command needs to reach this hub."""
        return self.root / "context.toml"


class HubConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The settings. Each, but for the tables, may be set in the environment as MOORING_HUB_ and the name in capitals.

    `public_host` is the name that devices use and stands in the servers' certificate. `broker` is empty for a
    Mosquitto child of the hub, or the address of one that is there already (mqtts://host:port). `look_s` is the
    length of one look at the evidence, in seconds; at most one false alarm is expected per `false_alarm_months`.
    A device is shown as offline after `offline_after_s` without a report. `profiles` is a folder of device profiles
    beside the built-in ones. Each user and each service token may send `requests_per_s` to the API, each address
    `strangers_per_s` without a token (enrolments among them); ten seconds' worth of either may come at once.
    Windows, samples and looks are removed `windows_days`, `samples_days` and `looks_days` after they came, labels and
    what quality is summed from `labels_days` after, files that belong to no model and no module `uploads_days` after
    they were stored.
    A device's certificate ends after `certificate_days` and is renewed at two thirds of that; the revocation list ends
    after `crl_days` and is written anew long before. `database` is sqlite for a file in the hub's folder, or the
    address of a PostgreSQL (postgresql://USER@HOST:PORT/NAME?sslmode=verify-full), whose password is what the file
    `database_password_file` holds. `blobs` is folder for files in the hub's folder, or s3://BUCKET/FOLDER for a bucket
    of the store that `[bucket]` names.
    """

    dev: bool = False
    api_host: str = "0.0.0.0"  # noqa: S104 - devices enrol from elsewhere; every route but four asks for a token
    api_port: int = 8443
    mqtt_host: str = "0.0.0.0"  # noqa: S104 - as above; the broker asks for a client certificate
    mqtt_port: int = 8883
    public_host: str = "localhost"
    broker: str = ""
    look_s: float = 3600.0
    false_alarm_months: float = 12.0
    offline_after_s: float = 900.0
    publisher: str = "dev"
    profiles: str = ""
    requests_per_s: float = 100.0
    strangers_per_s: float = 20.0
    windows_days: float = 90.0
    samples_days: float = 30.0
    looks_days: float = 400.0
    labels_days: float = 400.0
    uploads_days: float = 1.0
    certificate_days: float = 30.0
    crl_days: float = 30.0
    database: str = SQLITE
    database_password_file: str = ""
    blobs: str = FOLDER
    bucket: BucketSettings = BucketSettings()
    api: ApiSettings = ApiSettings()
    ca: CaSettings = CaSettings()
    oidc: OidcSettings = OidcSettings()
    transfer: TransferSettings = TransferSettings()
    patches: PatchSettings = PatchSettings()
    building: BuildingSettings = BuildingSettings()
    images: ImageSettings = ImageSettings()
    datasets: DatasetSettings = DatasetSettings()
    replicas: ReplicasSettings = ReplicasSettings()
    retraining: RetrainingSettings = RetrainingSettings()
    outward: OutwardSettings = OutwardSettings()
    metrics: MetricsSettings = MetricsSettings()
    monitoring: MonitoringSettings = MonitoringSettings()

    def __post_init__(self) -> None:
        for name, port in (("api_port", self.api_port), ("mqtt_port", self.mqtt_port)):
            if not 1 <= port <= 65535:
                raise ValueError(f"{name}: expected a port from 1 to 65535, got {port}")
        for name, amount in (
            ("look_s", self.look_s),
            ("false_alarm_months", self.false_alarm_months),
            ("offline_after_s", self.offline_after_s),
            ("requests_per_s", self.requests_per_s),
            ("strangers_per_s", self.strangers_per_s),
            ("windows_days", self.windows_days),
            ("samples_days", self.samples_days),
            ("looks_days", self.looks_days),
            ("labels_days", self.labels_days),
            ("uploads_days", self.uploads_days),
            ("certificate_days", self.certificate_days),
            ("crl_days", self.crl_days),
        ):
            if not amount > 0:
                raise ValueError(f"{name}: expected a number above 0, got {amount}")
        if not re.fullmatch(NAME_PATTERN, self.publisher):
            raise ValueError(f"publisher: expected {NAME_PATTERN}, got {self.publisher[:80]!r}")
        if self.broker and not re.fullmatch(r"mqtts://[^/:\s]+(:[0-9]{1,5})?", self.broker):
            raise ValueError(f"broker: expected mqtts://HOST:PORT or nothing, got {self.broker[:80]!r}")

        _check_database(self.database)
        check_blobs(self.blobs, self.bucket)

    @property
    def uses_postgres(self) -> bool:
        return self.database != SQLITE

    @property
    def api_url(self) -> str:
        """Where operators and devices reach the API."""
        return f"https://{self.public_host}:{self.api_port}"

    @property
    def profiles_folder(self) -> Path | None:
        return Path(self.profiles) if self.profiles else None

    @classmethod
    def load(cls, folder: Path, environment: Mapping[str, str] = os.environ) -> HubConfig:
        """Raises NotFound `hub-not-found` without a hub in `folder`, BadRequest `config-invalid` naming the setting."""
        path = HubPaths(folder).config
        if not path.is_file():
            raise NotFound("hub-not-found", f"no hub in {folder}: make one with `mooring-hub init {folder}`")
        try:
            values = _named(tomllib.loads(path.read_text()) | _from_environment(environment), environment)
            # strict=False: what comes from the environment is text.
            return msgspec.convert(values, cls, strict=False)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
            raise BadRequest("config-invalid", f"{path}: {error}; nothing was started") from error

    def write(self, folder: Path) -> None:
        """A new file, or in the place of the old one. Comments are not kept."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        lines = [f"{name} = {json.dumps(value)}" for name, value in plain.items() if name not in _TABLES]
        for name in _TABLES:
            if getattr(self, name) != getattr(_DEFAULTS, name):
                lines += _table(name, plain[name])
        path = HubPaths(folder).config
        path.touch(mode=0o600)
        path.write_text("\n".join(lines) + "\n")


def _check_database(text: str) -> None:
    """What is wrong is said without the text, which may hold a password."""
    if text == SQLITE:
        return
    try:
        parts = urlsplit(text)
        password = parts.password
    except ValueError as error:
        raise ValueError("database: expected sqlite or postgresql://USER@HOST:PORT/NAME, got neither") from error
    if parts.scheme not in ("postgresql", "postgres") or len(parts.path) < 2:
        raise ValueError("database: expected sqlite or postgresql://USER@HOST:PORT/NAME, got neither")
    if password is not None or "password" in parse_qs(parts.query):
        raise ValueError("database: expected an address without a password; name its file in database_password_file")


_DEFAULTS = HubConfig()


def _table(name: str, values: Mapping[str, Any]) -> list[str]:
    """A table of TOML, and the tables in it. What is null has no word there, and is left out as the default."""
    plain = {key: value for key, value in values.items() if not isinstance(value, dict) and value is not None}
    lines = ["", f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in plain.items())]
    for key, inner in values.items():
        if isinstance(inner, dict) and inner:
            word = key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key)
            lines += _table(f"{name}.{word}", inner)
    return lines


def _named(values: dict[str, Any], environment: Mapping[str, str]) -> dict[str, Any]:
    """Replicas that are made from one template are told apart by their environment."""
    name = environment.get(f"{ENVIRONMENT_PREFIX}REPLICAS_NAME", "")
    return values | {"replicas": values.get("replicas", {}) | {"name": name}} if name else values


def _from_environment(environment: Mapping[str, str]) -> dict[str, str]:
    names = (field.name for field in msgspec.structs.fields(HubConfig) if field.name not in _TABLES)
    return {
        name: environment[f"{ENVIRONMENT_PREFIX}{name.upper()}"]
        for name in names
        if f"{ENVIRONMENT_PREFIX}{name.upper()}" in environment
    }
