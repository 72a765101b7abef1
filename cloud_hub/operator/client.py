"""The hub's API as typed calls: what an operator or publisher does, one method each.

Requests and answers are the API's own types. Used by the `mooring` command and by the demo:

    async with HubClient(HubContext.load(path)) as hub:
        await hub.devices("site=lab")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from cloud_hub.api.devices import DeviceDetail, NewTags, Readmitted
from cloud_hub.api.models import FileReference, RegisterModel
from cloud_hub.api.system import HubHealth, Upload
from cloud_hub.api.trust import SignedMetadata, TrustStatus
from cloud_hub.building.request import BuildRequest
from cloud_hub.chain import Event, Link
from cloud_hub.claims import IssuedToken, KnownToken, NewToken
from cloud_hub.device_rows import Device
from cloud_hub.expulsion import Expelled
from cloud_hub.fleet import FleetSummary
from cloud_hub.monitoring.looks import LookSummary
from cloud_hub.monitoring.samples import SampleQuery, SampleRow
from cloud_hub.offline import OfflineRequest, OfflineSet
from cloud_hub.operator.alert_calls import AlertCalls
from cloud_hub.operator.arm_calls import ArmCalls
from cloud_hub.operator.asking_calls import AskingCalls
from cloud_hub.operator.candidate_calls import CandidateCalls
from cloud_hub.operator.configuration_calls import ConfigurationCalls
from cloud_hub.operator.context import HubContext
from cloud_hub.operator.dataset_calls import DataSetCalls
from cloud_hub.operator.errors import Refused
from cloud_hub.operator.following import Following
from cloud_hub.operator.group_calls import GroupCalls
from cloud_hub.operator.label_calls import LabelCalls
from cloud_hub.operator.long_work import Watch, unwatched, work_out
from cloud_hub.operator.operation_calls import OperationCalls
from cloud_hub.operator.people_calls import PeopleCalls
from cloud_hub.operator.privacy_calls import PrivacyCalls
from cloud_hub.operator.retrain_calls import RetrainCalls
from cloud_hub.operator.rollout_calls import RolloutCalls
from cloud_hub.operator.site_calls import SiteCalls
from cloud_hub.operator.stream_calls import StreamCalls
from cloud_hub.operator.transport import Progress, Transport, path_of
from cloud_hub.operator.webhook_calls import WebhookCalls
from cloud_hub.packaging import ModuleRelease
from cloud_hub.patches.queue import Patch
from cloud_hub.registry import ModelVersion, NewModel
from cloud_hub.renewals import Readmission
from cloud_hub.trust.ceremony import Outcome, Pending
from cloud_hub.trust.standing import Repository


def no_progress(_more: int) -> None:
    """For callers who show none."""


class HubClient(
    GroupCalls,
    AskingCalls,
    ConfigurationCalls,
    AlertCalls,
    LabelCalls,
    ArmCalls,
    CandidateCalls,
    PrivacyCalls,
    WebhookCalls,
    DataSetCalls,
    RetrainCalls,
    RolloutCalls,
    SiteCalls,
    PeopleCalls,
    OperationCalls,
    StreamCalls,
    Following,
):
    """Raises `errors.Refused` for what the hub refuses, `HubUnreachable` when it does not answer."""

    def __init__(self, context: HubContext, reason: str = "") -> None:
        """`reason` stands in the audit trail beside every change."""
        self.context = context
        self._http = Transport(context, reason)

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.__aexit__(kind, error, trace)

    # --- the hub ------------------------------------------------------------------------------------------------
    async def health(self) -> HubHealth:
        """Needs no token."""
        return await self._http.ask(HubHealth, "GET", "/health")

    async def events(self, kind: str = "", subject: str = "", limit: int = 100) -> list[Event]:
        """Newest first."""
        return await self._http.ask(
            list[Event], "GET", "/events", query={"kind": kind, "subject": subject, "limit": limit}
        )

    async def audit_head(self) -> Link:
        """The end of the audit trail's chain of hashes."""
        return await self._http.ask(Link, "GET", "/audit/head")

    async def export_audit(self, target: Path, progress: Progress = no_progress) -> int:
        """The whole audit trail, oldest first, one JSON object per line; bytes written to `target`."""
        return await self._http.download("/audit/export", target, progress)

    # --- models -------------------------------------------------------------------------------------------------
    async def upload(self, file: Path, progress: Progress = no_progress) -> Upload:
        """Stores the file in the hub, by its digest."""
        return await self._http.upload(Upload, "/uploads", file, progress)

    async def register(
        self, new: NewModel, files: Mapping[str, Path], progress: Progress = no_progress
    ) -> ModelVersion:
        """Uploads the files and registers them, by their path in the model, as the next version."""
        references = []
        for path, file in files.items():
            references.append(FileReference(path, (await self.upload(file, progress)).sha256))
        said = {name: getattr(new, name) for name in NewModel.__struct_fields__}
        body = RegisterModel(**said, files=tuple(references))
        return await self._http.ask(ModelVersion, "POST", "/models", body)

    async def models(self, name: str = "", tags: Sequence[str] = (), limit: int = 100) -> list[ModelVersion]:
        """`tags` are NAME=VALUE, all of which must hold."""
        return await self._http.ask(
            list[ModelVersion], "GET", "/models", query={"name": name, "tag": list(tags), "limit": limit}
        )

    async def model(self, name: str, version: int) -> ModelVersion:
        return await self._http.ask(ModelVersion, "GET", path_of("models", name, version))

    async def download_model_file(
        self, name: str, version: int, path: str, target: Path, progress: Progress = no_progress
    ) -> int:
        """Bytes written to `target`."""
        return await self._http.download(path_of("models", name, version, "files") + "/" + path, target, progress)

    async def delete_model(self, name: str, version: int) -> None:
        await self._http.raw("DELETE", path_of("models", name, version))

    # --- modules ------------------------------------------------------------------------------------------------
    async def build(self, request: BuildRequest, watch: Watch = unwatched) -> ModuleRelease:
        """As a long operation: `watch` hears how far it is."""
        return await work_out(self._http, ModuleRelease, "/modules", request, watch)

    async def sign(self, name: str, version: int, profile: str) -> ModuleRelease:
        return await self._http.ask(ModuleRelease, "POST", path_of("modules", name, version, profile, "sign"))

    async def modules(self, name: str = "", limit: int = 200) -> list[ModuleRelease]:
        return await self._http.ask(list[ModuleRelease], "GET", "/modules", query={"name": name, "limit": limit})

    async def module(self, name: str, version: int, profile: str) -> ModuleRelease:
        return await self._http.ask(ModuleRelease, "GET", path_of("modules", name, version, profile))

    async def patches(self, module: str = "", limit: int = 200) -> list[Patch]:
        """Of one module or of all; newest versions first."""
        return await self._http.ask(list[Patch], "GET", "/patches", query={"module": module, "limit": limit})

    async def manifest(self, name: str, version: int, profile: str) -> bytes:
        """The manifest's bytes, as signed."""
        return await self._http.raw("GET", path_of("modules", name, version, profile, "manifest"))

    async def blob(self, sha256: str) -> bytes:
        """A file by its digest; whoever asks checks it."""
        return await self._http.raw("GET", path_of("blobs", sha256))

    async def download_blob(self, sha256: str, target: Path, progress: Progress = no_progress) -> int:
        """As `blob`, for files of any size."""
        return await self._http.download(path_of("blobs", sha256), target, progress)

    async def image_metadata(self, filename: str) -> bytes | None:
        """A file of the image repository; None when there is none of that name."""
        return await self._file(path_of("trust", "image", filename))

    async def director_root(self, filename: str) -> bytes | None:
        """A root of the director; None when there is none of that name."""
        return await self._file(path_of("trust", "director", filename))

    async def _file(self, path: str) -> bytes | None:
        try:
            return await self._http.raw("GET", path)
        except Refused as error:
            if error.status == 404:
                return None
            raise

    # --- trust --------------------------------------------------------------------------------------------------
    async def trust_status(self) -> TrustStatus:
        return await self._http.ask(TrustStatus, "GET", "/trust/status")

    async def trust_pending(self) -> list[Pending]:
        """What waits for more signatures."""
        return await self._http.ask(list[Pending], "GET", "/trust/pending")

    async def put_publisher(self, publisher: str, metadata: str) -> Outcome:
        """A publisher's signed list of modules, as text."""
        path = path_of("trust", "publishers", publisher)
        return await self._http.ask(Outcome, "PUT", path, SignedMetadata(metadata))

    async def put_targets(self, metadata: str) -> Outcome:
        return await self._http.ask(Outcome, "PUT", "/trust/targets", SignedMetadata(metadata))

    async def put_root(self, repository: Repository, metadata: str) -> Outcome:
        return await self._http.ask(Outcome, "PUT", path_of("trust", "roots", repository), SignedMetadata(metadata))

    # --- devices ------------------------------------------------------------------------------------------------
    async def create_token(self, new: NewToken) -> str:
        """A claim token's text, which cannot be had again."""
        return (await self.issue_token(new)).token

    async def issue_token(self, new: NewToken) -> IssuedToken:
        """As `create_token`, with the id by which the token is listed and revoked."""
        return await self._http.ask(IssuedToken, "POST", "/tokens", new)

    async def tokens(self, spent: bool = False) -> list[KnownToken]:
        """Claim tokens, newest first; with `spent` also those that let nobody in any more."""
        return await self._http.ask(list[KnownToken], "GET", "/tokens", query={"spent": spent})

    async def revoke_token(self, token_id: str) -> None:
        await self._http.raw("DELETE", path_of("tokens", token_id))

    async def devices(
        self, query: str = "all", retired: bool = False, brief: bool = False, limit: int = 100, after: str = ""
    ) -> list[Device]:
        """A page of devices that the query means, by id; without their reports when `brief`."""
        wanted: dict[str, str | int] = {"query": query, "retired": retired, "brief": brief}
        return await self._http.ask(list[Device], "GET", "/devices", query={**wanted, "limit": limit, "after": after})

    async def fleet(self, query: str = "all", retired: bool = False) -> FleetSummary:
        """Counts of the devices that the query means."""
        return await self._http.ask(FleetSummary, "GET", "/fleet", query={"query": query, "retired": retired})

    async def device(self, device: str) -> DeviceDetail:
        return await self._http.ask(DeviceDetail, "GET", path_of("devices", device))

    async def tags(self, device: str) -> NewTags:
        return await self._http.ask(NewTags, "GET", path_of("devices", device, "tags"))

    async def set_tags(self, device: str, tags: dict[str, str]) -> Device:
        """Puts `tags` in the place of all that there are."""
        return await self._http.ask(Device, "PUT", path_of("devices", device, "tags"), NewTags(tags))

    async def retire(self, device: str) -> None:
        await self._http.raw("DELETE", path_of("devices", device))

    async def readmit(self, device: str, for_s: float) -> Readmitted:
        """Lets it renew an expired certificate, once, for so many seconds."""
        return await self._http.ask(Readmitted, "POST", path_of("devices", device, "readmit"), Readmission(for_s))

    async def revoke(self, device: str) -> Expelled:
        """Throws it out; what was done and proven."""
        return await self._http.ask(Expelled, "POST", path_of("devices", device, "revoke"))

    async def sign_offline(self, request: OfflineRequest) -> OfflineSet:
        """Metadata for devices that cannot ask, and which files belong to it."""
        return await self._http.ask(OfflineSet, "POST", "/offline", request)

    async def append_blob(self, sha256: str, file: BinaryIO, span: tuple[int, int], progress: Progress) -> None:
        """Writes bytes [from, to) of a file by its digest to the end of `file`; whoever asks checks them."""
        await self._http.append(path_of("blobs", sha256), file, span, progress)

    # --- monitoring ---------------------------------------------------------------------------------------------
    async def windows(
        self, module: str = "", version: int = 0, device: str = "", limit: int = 100
    ) -> list[LookSummary]:
        """Newest first; without a device those of the fleet."""
        return await self._http.ask(
            list[LookSummary],
            "GET",
            "/windows",
            query={"module": module, "version": version, "device": device, "limit": limit},
        )

    async def samples(self, query: SampleQuery) -> list[SampleRow]:
        """One page."""
        return await self._http.ask(list[SampleRow], "GET", "/samples", query=_fields(query))

    async def export_samples(self, query: SampleQuery, target: Path, progress: Progress = no_progress) -> int:
        """All that match, one JSON object per line; bytes written to `target`."""
        return await self._http.download("/samples/export", target, progress, query=_fields(query))


def _fields(query: SampleQuery) -> dict[str, str | float | int]:
    return {name: getattr(query, name) for name in query.__struct_fields__}
