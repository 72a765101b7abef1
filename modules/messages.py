"""What device and hub say to each other over MQTT: one tagged union in MessagePack, plus the signed device report.

Unknown fields are ignored on the wire within protocol version 1, so that old and new can talk. Sizes are bounded
before decoding. Which message goes on which topic stands beside each class.
"""

from __future__ import annotations

from typing import Literal, TypeVar

import msgspec

from firmware_profiles.profile import DeviceProfile
from modules.commands import Command, CommandResult
from modules.enrolment import RenewRequest
from modules.errors import MALFORMED, MessageError
from modules.execution import StageExecution
from modules.pieces import Withheld
from modules.privacy import Spent
from modules.targets import CANDIDATES, Mode
from modules.tensors import Tensor
from modules.vitals import Vitals

MAX_MESSAGE_BYTES = 1_000_000  # the shipped broker configuration allows packets of 1 MiB
MAX_BLOCK_BYTES = 512 * 1024
MAX_BATCH_ITEMS = 512
MAX_OFFERS = 256

Repository = Literal["image", "director", "blob"]
Stream = Literal["window", "sample", "event", "blob"]
ModuleState = Literal["serving", "starting", "restarting", "failed", "off"]
UpdateState = Literal[
    "idle",
    "resolving",
    "fetching",
    "verifying",
    "staging",
    "trying",
    "activating",
    "probation",
    "committed",
    "reverting",
    "rejected",
    "failed",
]


class Get(msgspec.Struct, frozen=True, tag="get", omit_defaults=True):
    """up/get, with response topic and correlation data: bytes [offset, offset+length) of a metadata file or blob.

    `name` is a TUF metadata file name (image, director) or a SHA-256 digest (blob). `held`, with the name of a root:
    the SHA-256 of the timestamp that the device has, or empty when it has none; see `Refusal.timestamp`. `grant`: what
    another device got in its `Way`, with which a gateway fetches a blob that is not its own.
    """

    repository: Repository
    name: str
    offset: int = 0
    length: int = MAX_BLOCK_BYTES
    held: bytes | None = None
    grant: str = ""


class Answer(msgspec.Struct, frozen=True, tag="answer"):
    """down/data: the bytes asked for, and the size of the whole file."""

    total: int
    offset: int
    data: bytes


class Refusal(msgspec.Struct, frozen=True, tag="refusal", omit_defaults=True):
    """down/data: why there are no bytes. Keys: not-found, bad-request, busy, not-allowed.

    `timestamp`, where a root that does not exist was asked for with `held`: the repository's timestamp, which a TUF
    client asks for next; empty when it is the one held. None when the hub does not say.
    """

    key: str
    text: str
    timestamp: bytes | None = None


class Renew(msgspec.Struct, frozen=True, tag="renew"):
    """up/get, with response topic and correlation data: asks for a certificate of a new key. Safe to repeat."""

    request: RenewRequest


class Renewed(msgspec.Struct, frozen=True, tag="renewed", omit_defaults=True):
    """down/data: the new certificate (PEM). A Refusal comes in its place when there is none.

    `device_ca` as in `EnrollAnswer`.
    """

    certificate: str
    device_ca: str = ""


class Offers(msgspec.Struct, frozen=True, tag="offers"):
    """up/get, with response topic and correlation data: asks for the ways to get `files`, by their SHA-256.

    `held` are files that the device has and that a patch could start from, the likeliest first. At most MAX_OFFERS of
    each. A hub of before version 0.2 does not answer: then a blob comes by `Get`, whole.
    """

    files: tuple[str, ...]
    held: tuple[str, ...] = ()


class PatchOffer(msgspec.Struct, frozen=True, omit_defaults=True):
    """A patch from the file `base` to the file wanted: its own SHA-256 and size, and where else it may be had.

    Nobody signed it: what it makes must be the signed file.
    """

    base: str
    sha256: str
    size: int
    url: str = ""
    grant: str = ""


class Way(msgspec.Struct, frozen=True, omit_defaults=True):
    """How one file may be had beside `Get`: an HTTPS address that answers ranges, patches, the cheapest first.

    `url` may be relative to the hub's address. `grant` lets a gateway fetch the file for this device. Both end
    after `Offered.valid_s`.
    """

    file: str
    url: str = ""
    grant: str = ""
    patches: tuple[PatchOffer, ...] = ()


class Offered(msgspec.Struct, frozen=True, tag="offered"):
    """down/data: a `Way` for each file that the device may have; addresses and grants hold for `valid_s` seconds."""

    ways: tuple[Way, ...]
    valid_s: float = 0.0


class Doorbell(msgspec.Struct, frozen=True, tag="doorbell"):
    """down/desired, retained: the director has signed, or will sign when asked, this version for the device."""

    director_version: int


class Batch(msgspec.Struct, frozen=True, tag="batch"):
    """up/window, sample, event, blob: entries of one outbox stream, as (sequence number, encoded item), ascending.

    `epoch` names one life of the outbox (sequences restart with it). `previous` is the sequence number before the
    first entry that the device still holds or has sent: the hub takes a batch only when it has committed up to
    `previous` (or more), and drops entries that it already has. So nothing is counted twice or lost. `acked` is the
    last number that the hub has acknowledged in this epoch: a hub that stands below it has lost what it stored.
    """

    stream: Stream
    epoch: str
    previous: int
    entries: tuple[tuple[int, bytes], ...]
    acked: int = 0


class Ack(msgspec.Struct, frozen=True, tag="ack"):
    """down/ack: everything up to and including `upto` is durably stored; the device may forget it.

    `lost`: the hub no longer has what it had acknowledged in this epoch (its database was lost, or restored from a
    backup) and takes nothing more of it. The device sends what it still holds under a new epoch.
    """

    stream: Stream
    epoch: str
    upto: int
    lost: bool = False


class SignedReport(msgspec.Struct, frozen=True, tag="report"):
    """up/state, retained: a DeviceReport's JSON, signed by the device key (ECDSA P-256, SHA-256, DER)."""

    body: bytes
    signature: bytes


class Presence(msgspec.Struct, frozen=True, tag="presence", omit_defaults=True):
    """up/presence, retained: whether the device is connected.

    The device says that it is, once it has connected, and that it is not, when it leaves; the broker says the latter
    when the connection is lost, as the device's will. `boot` names one life of the agent's process, as in its report,
    and `number` counts connections in it: the end of one that is over already says nothing. `left`: it went on purpose.
    """

    online: bool
    boot: str
    number: int
    left: bool = False


Message = (
    Get
    | Answer
    | Refusal
    | Offers
    | Offered
    | Renew
    | Renewed
    | Doorbell
    | Command
    | Batch
    | Ack
    | SignedReport
    | Presence
)


class Sample(msgspec.Struct, frozen=True, omit_defaults=True):
    """Item of the sample stream: one prediction with what went in and came out, each of batch size 1.

    `probability` is the chance with which this prediction was kept, so that estimates can be re-weighted; in the
    stratum `asked`, which the hub asked for with the command `request`, it says nothing, and no estimate may use it.
    `at` is seconds since the epoch by the device's clock. `withheld` are tensors that are not among `inputs` and
    `outputs`; `redacted` says what was done to the values of a tensor or of one of its features, by its name. `place`
    is the prediction's number in the device's ring, 0 where it has none; `event_at` when it happened what the inputs
    are of, in seconds since the epoch, 0 where nobody said.
    """

    module: str
    manifest_sha256: str
    prediction_id: str
    at: float
    stratum: str
    probability: float
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    withheld: tuple[Withheld, ...] = ()
    redacted: dict[str, str] = {}
    request: str = ""
    place: int = 0
    event_at: float = 0.0


class AgentEvent(msgspec.Struct, frozen=True, omit_defaults=True):
    """Item of the event stream: something an operator should see, with a stable key; or how a command ended."""

    at: float
    level: Literal["info", "warning", "error"]
    key: str
    text: str
    module: str = ""
    command: CommandResult | None = None


class ModuleReport(msgspec.Struct, frozen=True):
    """One module that the device holds as its own: what runs, how it does, and the deployment that brought it.

    `verified` is true once it has come through probation. Counts are since the worker started. `confinement` is what
    its worker did to be confined, `level` the word of `Confinement` for that. `stages` is what `execution` says, as
    values. `sources` says of each how it does, such as "mqtt: open". `samples_dropped` counts samples that the worker
    could not give, by reason, and those that its quota thinned out; `sampling` says why none are taken at all.
    `config_sha256` is `modules.configuration.config_digest` of what the director gave it, empty where that is nothing.
    `mode` tells a candidate from the version that serves under the same name; `share` is the part of the predictions
    that it gets, `beside` what came of them, by word: offered, fed, compared, agreed; answered, fell-back-…; missed-….
    """

    name: str
    version: int
    manifest_sha256: str
    release_counter: int
    deployment: str
    state: ModuleState
    verified: bool
    requests: int = 0
    errors: int = 0
    restarts: int = 0
    confinement: str = ""
    execution: str = ""
    endpoint: str = ""
    level: str = ""
    stages: tuple[StageExecution, ...] = ()
    sources: tuple[str, ...] = ()
    samples_dropped: dict[str, int] = {}
    sampling: str = ""
    config_sha256: str = ""
    mode: Mode = "serve"
    share: float = 1.0
    beside: dict[str, int] = {}

    @property
    def candidate(self) -> bool:
        """Whether it runs beside the version that serves under this name."""
        return self.mode in CANDIDATES


class UpdateReport(msgspec.Struct, frozen=True):
    """Where the update machine stands, or how its last run ended. `deployments` are those the update carries."""

    state: UpdateState
    director_version: int = 0
    deployments: tuple[str, ...] = ()
    attempt: int = 0
    reason_key: str = ""
    reason: str = ""
    done_bytes: int = 0
    total_bytes: int = 0


class AttackReport(msgspec.Struct, frozen=True):
    """A refusal by verification: its key (rollback, freeze, wrong-device, ...), what it said, when last, how often."""

    key: str
    text: str
    at: float
    count: int = 1


class DeviceReport(msgspec.Struct, frozen=True):
    """The device manifest (reported twin): the rollout's only source of truth. `counter` grows with every report.

    `current` is the update under way (state idle when none), `last` the one that ended most recently. `boot` names one
    life of the agent's process: two that take turns are two devices with one key. `dropped` counts what the outbox has
    given up, by stream, `dropped_why` the same by stream and reason, such as `sample.age`. `heat` is
    warm or hot where modules give way to it, and empty else. `privacy` is what private windows have spent lately.
    `vitals` is how the machine is; an agent of before 0.2 does not say.
    """

    device: str
    counter: int
    at: float
    agent_version: str
    profile: DeviceProfile
    director_version: int
    image_version: int
    modules: tuple[ModuleReport, ...]
    current: UpdateReport
    last: UpdateReport
    attacks: tuple[AttackReport, ...] = ()
    dropped: dict[str, int] = {}
    dropped_why: dict[str, int] = {}
    boot: str = ""
    heat: str = ""
    privacy: tuple[Spent, ...] = ()
    vitals: Vitals | None = None


_Said = TypeVar("_Said")

_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)
_report = msgspec.json.Decoder(DeviceReport)
_sample = msgspec.msgpack.Decoder(Sample)
_event = msgspec.msgpack.Decoder(AgentEvent)


def encode(message: Message | Sample | AgentEvent) -> bytes:
    """Raises MessageError when the result would not pass the broker."""
    data = msgspec.msgpack.encode(message)
    if len(data) > MAX_MESSAGE_BYTES:
        raise MessageError(f"{type(message).__name__}: expected at most {MAX_MESSAGE_BYTES} bytes, got {len(data)}")
    return data


def decode(data: bytes) -> Message:
    """Raises MessageError on anything that is not one of Message."""
    return _read(data, _decoder, "message")


def decode_sample(data: bytes) -> Sample:
    """Raises MessageError."""
    return _read(data, _sample, "sample")


def decode_event(data: bytes) -> AgentEvent:
    """Raises MessageError."""
    return _read(data, _event, "event")


def encode_report(report: DeviceReport) -> bytes:
    """The bytes that the device signs."""
    return msgspec.json.encode(report, order="sorted")


def decode_report(body: bytes) -> DeviceReport:
    """Raises MessageError. Check the signature over `body` first: these bytes are never re-encoded."""
    return _read(body, _report, "report")


def _read(data: bytes, decoder: msgspec.msgpack.Decoder[_Said] | msgspec.json.Decoder[_Said], what: str) -> _Said:
    if len(data) > MAX_MESSAGE_BYTES:
        raise MessageError(f"message: expected at most {MAX_MESSAGE_BYTES} bytes, got {len(data)}")
    try:
        return decoder.decode(data)
    except (*MALFORMED, ValueError) as error:  # ValueError: a device profile refuses its name so
        raise MessageError(f"{what}: {error}") from error
