"""Where events go beside the hub's own list: the table `[outward]` of `hub.toml`. Used by `config`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import msgspec

from cloud_hub.outward.kinds import checked_patterns

_BROKER: Final = re.compile(r"mqtts://[^/:\s]+(:[0-9]{1,5})?")
_TOPIC: Final = re.compile(r"[^\s#+$/][^\s#+]{0,200}")
_READER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


class OutwardSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Events as CloudEvents 1.0 to webhooks, a broker and a log file.

    Webhooks go to public addresses over HTTPS only: `private_addresses` lets them go to addresses of this machine and
    of private networks too, `plain_http` without TLS; `ca` is a PEM file of authorities that are trusted beside those
    of the system. An endpoint has `timeout_s` to answer. An event that fails is sent again, ever more rarely, for
    `retry_hours`; then it is dead. After `give_up_days` without one success a webhook is disabled. Dead events are
    kept `dead_days`, others that were delivered a week.

    With `mqtt_topic` events are published there (in a topic per family below it) at the hub's own broker, or at
    `mqtt_broker` (mqtts://host:port), which then is to be trusted by `mqtt_ca` and is shown `mqtt_certificate` with
    `mqtt_key`, or `mqtt_user` with the password in the file `mqtt_password_file`. `mqtt_readers` are names of client
    certificates that may read them at the hub's own broker. With `log` they are written to that file, one JSON object
    per line; it is put aside at `log_mib`, and the last `log_files` are kept. `kinds` are those that go to broker
    and log.
    """

    kinds: tuple[str, ...] = ("*",)
    private_addresses: bool = False
    plain_http: bool = False
    ca: str = ""
    timeout_s: float = 15.0
    retry_hours: float = 24.0
    give_up_days: float = 5.0
    dead_days: float = 30.0
    mqtt_topic: str = ""
    mqtt_broker: str = ""
    mqtt_ca: str = ""
    mqtt_certificate: str = ""
    mqtt_key: str = ""
    mqtt_user: str = ""
    mqtt_password_file: str = ""
    mqtt_readers: tuple[str, ...] = ()
    log: str = ""
    log_mib: int = 64
    log_files: int = 5

    def __post_init__(self) -> None:
        checked_patterns(self.kinds, "outward.kinds")
        for name in ("timeout_s", "retry_hours", "give_up_days", "dead_days"):
            if not getattr(self, name) > 0:
                raise ValueError(f"outward.{name}: expected a number above 0, got {getattr(self, name)}")
        for name in ("log_mib", "log_files"):
            if getattr(self, name) < 1:
                raise ValueError(f"outward.{name}: expected at least 1, got {getattr(self, name)}")
        self._check_mqtt()
        if self.log and not Path(self.log).is_absolute():
            raise ValueError(f"outward.log: expected an absolute path, got {self.log[:200]!r}")

    def _check_mqtt(self) -> None:
        topic = self.mqtt_topic
        if topic and (not _TOPIC.fullmatch(topic) or topic.endswith("/") or topic.startswith("mooring/1")):
            raise ValueError(
                "outward.mqtt_topic: expected a topic without wildcards that is not below mooring/1 (the devices' own),"
                f" got {topic[:200]!r}"
            )
        if self.mqtt_broker and not _BROKER.fullmatch(self.mqtt_broker):
            raise ValueError(f"outward.mqtt_broker: expected mqtts://HOST:PORT, got {self.mqtt_broker[:80]!r}")
        if bool(self.mqtt_certificate) != bool(self.mqtt_key):
            raise ValueError("outward: expected both of mqtt_certificate and mqtt_key, or neither")
        for reader in self.mqtt_readers:
            if not _READER.fullmatch(reader):
                raise ValueError(f"outward.mqtt_readers: expected names of certificates, got {reader[:80]!r}")
