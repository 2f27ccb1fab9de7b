"""Whether a model takes the champion's place: pure decisions, carried out by `encsearch promote`."""

import math
from dataclasses import dataclass

TOLERANCE = 1e-9  # 0.57 - 0.55 is 0.0199999999999999 in binary: a gain of exactly the margin must pass


@dataclass(frozen=True)
class Candidate:
    """A model as the gate sees it; the champion is one too.

    `mean_iou` of both is measured on the same data; `version` is the version in the registry, if it has one.
    """

    run_id: str
    mean_iou: float
    version: str | None = None


@dataclass(frozen=True)
class Decision:
    """The verdict, and every reason for it as a sentence with its figures."""

    promote: bool
    reasons: tuple[str, ...]


def decide(candidate: Candidate, champion: Candidate | None, margin: float) -> Decision:
    """Promote a candidate that is better than the champion by `margin` mIoU on the same data.

    Equal is not better, even with margin 0. A score that is not a number is never promoted.
    """
    if not math.isfinite(candidate.mean_iou):
        return Decision(False, (f"the candidate's mIoU is {candidate.mean_iou}: its training diverged",))
    if champion is None:
        return Decision(True, (f"there is no champion yet; the candidate has mIoU {candidate.mean_iou:.4f}",))
    if candidate.run_id == champion.run_id:
        return Decision(False, (f"run {candidate.run_id} is already the champion{_version(champion)}",))
    return _decide_by_gain(candidate, champion, margin)


def _decide_by_gain(candidate: Candidate, champion: Candidate, margin: float) -> Decision:
    gain = candidate.mean_iou - champion.mean_iou
    scores = (
        f"mIoU {candidate.mean_iou:.4f} against the champion's {champion.mean_iou:.4f}{_version(champion)}"
        f" on the same data: {gain:+.4f}"
    )
    if gain <= 0:
        return Decision(False, (scores, "the candidate is not better"))
    if gain < margin - TOLERANCE:
        return Decision(False, (scores, f"the gain is below the margin of {margin:.4f}"))
    return Decision(True, (scores, f"the gain reaches the margin of {margin:.4f}"))


def _version(model: Candidate) -> str:
    return f" (version {model.version})" if model.version else ""
