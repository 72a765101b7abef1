"""Asks a child process how a candidate compares, and for the reference of its module: models come from outside.

The child (`judge_child`) has the limits and the environment of `probing.process`. Called by `candidate`.
"""

from __future__ import annotations

import msgspec

from cloud_hub.probing.process import ask
from cloud_hub.retraining.judging import Verdict
from cloud_hub.retraining.plan import Judging

PROGRAM = "cloud_hub.retraining.judge_child"


class JudgeRequest(msgspec.Struct, frozen=True):
    """Paths of local files. `manifest` is the champion's; `profile` its reference profile, empty where it has none.

    With `reference` a sample of the training rows' inputs is written there, as drawn from everything that was predicted
    and not from what was sampled most.
    """

    candidate: str
    champion: str
    manifest: str
    profile: str
    train: str
    heldout: str
    reference: str
    judging: Judging


async def judge_models(request: JudgeRequest) -> Verdict:
    """Raises Unprocessable (`model-refused`) with the child's words."""
    return msgspec.json.decode(await ask(PROGRAM, msgspec.json.encode(request)), type=Verdict)
