"""The part of the hub's client that has to do with what is asked of devices. Mixed into `client.HubClient`."""

from __future__ import annotations

from pathlib import Path

from cloud_hub.asking.book import AskedCommand
from cloud_hub.asking.commands import CommandBatch, NewSampleRequest
from cloud_hub.asking.policies import DevicePolicy, PolicyChange
from cloud_hub.asking.wanted import NewCommand
from cloud_hub.operator.transport import Progress, Transport, path_of


def _no_progress(_more: int) -> None:
    """For callers who show none."""


class AskingCalls:
    _http: Transport

    async def request_samples(self, new: NewSampleRequest) -> AskedCommand:
        return await self._http.ask(AskedCommand, "POST", "/samples/requests", new)

    async def ask_devices(self, new: NewCommand) -> CommandBatch:
        """One command for each device that is meant."""
        return await self._http.ask(CommandBatch, "POST", "/commands", new)

    async def commands(
        self,
        device: str = "",
        module: str = "",
        state: str = "",
        limit: int = 100,
        kind: str = "",
        batch: str = "",
    ) -> list[AskedCommand]:
        """Newest first."""
        query: dict[str, str | int] = {
            "device": device, "module": module, "state": state, "limit": limit, "kind": kind, "batch": batch,
        }  # fmt: skip
        return await self._http.ask(list[AskedCommand], "GET", "/commands", query=query)

    async def command_result(self, number: str) -> bytes:
        """What it has brought: text of logs, JSON of diagnostics."""
        return await self._http.raw("GET", path_of("commands", number, "result"))

    async def cancel_command(self, number: str) -> AskedCommand:
        return await self._http.ask(AskedCommand, "POST", path_of("commands", number, "cancel"))

    async def command(self, number: str) -> AskedCommand:
        return await self._http.ask(AskedCommand, "GET", path_of("commands", number))

    async def sampling(self, module: str, target: str = "") -> list[DevicePolicy]:
        query = {"module": module, "target": target}
        return await self._http.ask(list[DevicePolicy], "GET", "/sampling", query=query)

    async def change_sampling(self, change: PolicyChange) -> list[DevicePolicy]:
        """The devices whose policy changes, with what changes."""
        return await self._http.ask(list[DevicePolicy], "POST", "/sampling", change)

    async def sample_blob(self, sample: int, sha256: str, target: Path, progress: Progress = _no_progress) -> int:
        """Its bytes, into a file; how many."""
        return await self._http.download(path_of("samples", str(sample), "blobs", sha256), target, progress)
