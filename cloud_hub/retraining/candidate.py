"""What is done with a candidate once it is trained: judged, registered, built, signed, rolled out.

Each step may be asked for again after a crash: it finds what it had done by then. Called by `runs`, which says when.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec
from sqlalchemy import select

from cloud_hub.blobs import Blobs
from cloud_hub.datasets.book import file_of
from cloud_hub.datasets.wishes import HELDOUT, TRAIN, Dataset
from cloud_hub.errors import Conflict, Unprocessable
from cloud_hub.packaging import ModuleRelease, Packaging
from cloud_hub.registry import ModelFile, NewModel, Registry
from cloud_hub.retraining.champion import Champion, request_like
from cloud_hub.retraining.judge import JudgeRequest, judge_models
from cloud_hub.retraining.judging import Verdict
from cloud_hub.retraining.plan import RetrainPlan
from cloud_hub.retraining.records import Run
from cloud_hub.rollouts.controller import Controller
from cloud_hub.rollouts.new import NewRollout
from cloud_hub.rollouts.states import Rollout
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import modules, rollouts
from cloud_hub.trust.image import ImageRepository

ACTOR: Final = "retraining"
RUN_TAG: Final = "retrain.run"
PLAN_TAG: Final = "retrain.plan"
LABEL_CHARS: Final = 480


class Candidates:
    """Of all runs."""

    def __init__(
        self,
        store: Store,
        blobs: Blobs,
        registry: Registry,
        packaging: Packaging,
        image: ImageRepository,
        controller: Controller,
    ) -> None:
        self._store, self._blobs, self._registry = store, blobs, registry
        self._packaging, self._image, self._controller = packaging, image, controller

    async def judge(self, run: Run, plan: RetrainPlan, champion: Champion, dataset: Dataset) -> tuple[Verdict, str]:
        """The verdict, and the digest of a reference sample. Raises Unprocessable (`model-refused`, `candidate-files`,
        `not-comparable`).
        """
        folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="mooring-judge-"))
        try:
            request = await self._request(run, plan, champion, dataset, folder)
            verdict = await judge_models(request)
            given = run.result.given_reference
            return verdict, given or await self._blobs.put_file(Path(request.reference))
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, True)

    async def _request(
        self, run: Run, plan: RetrainPlan, champion: Champion, dataset: Dataset, folder: Path
    ) -> JudgeRequest:
        manifest = champion.manifest
        profile = manifest.file(manifest.reference).sha256 if manifest.reference else ""
        sha256 = next(iter(champion.builds))
        return JudgeRequest(
            candidate=await self._copy(model_file(run.result.files).sha256, folder / "candidate.onnx"),
            champion=await self._copy(champion.onnx.sha256, folder / "champion.onnx"),
            manifest=await self._copy(sha256, folder / "manifest"),
            profile=await self._copy(profile, folder / "profile") if profile else "",
            train=await self._copy(file_of(dataset, TRAIN).sha256, folder / "train"),
            heldout=await self._copy(file_of(dataset, HELDOUT).sha256, folder / "heldout"),
            reference="" if run.result.given_reference else str(folder / "reference.npz"),
            judging=plan.judging,
        )

    async def _copy(self, sha256: str, target: Path) -> str:
        await self._blobs.copy(sha256, target)
        return str(target)

    async def register(self, run: Run, plan: RetrainPlan) -> int:
        """The candidate's version. Raises as `Registry.register`."""
        known = await self._registry.list(plan.module, {RUN_TAG: run.id}, 1)
        if known:
            return known[0].version
        result = run.result
        new = NewModel(
            plan.module,
            description=f"retrained by plan {plan.name}: {run.why}"[:LABEL_CHARS],
            author=run.actor,
            git_commit=result.git_commit,
            training_run=f"mooring:{run.id}",
            datasets=(result.dataset,),
            tags={PLAN_TAG: plan.name, RUN_TAG: run.id},
            mlflow_run=result.mlflow_run,
            mlflow_uri=result.mlflow_uri,
            parent=f"{plan.module}:{result.champion}",
        )
        files: Mapping[str, tuple[str, int]] = {file.path: (file.sha256, file.size) for file in result.files}
        return (await self._registry.register(new, files, ACTOR)).version

    async def build(self, run: Run, champion: Champion) -> tuple[str, ...]:
        """A module for each profile that the champion has one for; their names. Raises as `Packaging.build`."""
        model = model_file(run.result.files).path
        built = []
        publishers = await self._publishers(run.module, champion.model.version)
        for build in champion.builds.values():
            publisher = publishers.get(build.profile, "")
            request = request_like(build, run.result.version, model, run.result.reference, publisher)
            try:
                await self._packaging.build(request, ACTOR)
            except Conflict as error:
                if error.key != "module-signed":  # by then it was built already
                    raise
            built.append(f"{run.module}:{run.result.version}/{build.profile}")
        return tuple(built)

    async def sign(self, run: Run) -> bool:
        """Whether all are signed: here, where the publisher's key is here, or by the publisher meanwhile."""
        for release in await self._releases(run):
            if release.signed_at is None:
                try:
                    await self._image.sign_module(release.name, release.version, release.profile, ACTOR)
                except Conflict as error:
                    if error.key == "offline-key":
                        return False
                    raise
        return True

    async def is_signed(self, run: Run) -> bool:
        return all(release.signed_at is not None for release in await self._releases(run))

    async def roll_out(self, run: Run, plan: RetrainPlan) -> str:
        """The rollout's id. Raises as `Controller.create`."""
        if plan.rollout is None:
            raise Unprocessable("no-rollout", f"plan {plan.name}: expected a rollout, got none")
        version = run.result.version
        query = select(rollouts.c.id).where(rollouts.c.module == plan.module, rollouts.c.version == version)
        async with self._store.read() as connection:
            known = (await connection.execute(query.order_by(rollouts.c.created_at))).scalars().first()
        if known is not None:
            return str(known)
        new = NewRollout(plan.module, version, **msgspec.structs.asdict(plan.rollout), start=True)
        return (await self._controller.create(new, ACTOR)).rollout.id

    async def rollout(self, rollout: str) -> Rollout:
        return (await self._controller.get(rollout)).rollout

    async def _releases(self, run: Run) -> list[ModuleRelease]:
        names = {text.rpartition("/")[2] for text in run.result.modules}
        return [await self._packaging.get(run.module, run.result.version, profile) for profile in sorted(names)]

    async def _publishers(self, module: str, version: int) -> dict[str, str]:
        """Of the champion's modules by profile: the candidate's are theirs to sign."""
        query = select(modules.c.profile, modules.c.publisher)
        query = query.where(modules.c.name == module, modules.c.version == version)
        async with self._store.read() as connection:
            return {row.profile: row.publisher for row in await connection.execute(query)}


def model_file(files: tuple[ModelFile, ...]) -> ModelFile:
    """The candidate's only ONNX file. Raises Unprocessable `candidate-files`."""
    found = [file for file in files if file.path.endswith(".onnx")]
    if len(found) != 1:
        names = ", ".join(file.path for file in files)[:200]
        raise Unprocessable("candidate-files", f"candidate: expected exactly one .onnx file in MOORING_OUTPUT: {names}")
    return found[0]


def signing_command(run: Run) -> str:
    return f"mooring module sign {run.module}:{run.result.version} --key KEY"
