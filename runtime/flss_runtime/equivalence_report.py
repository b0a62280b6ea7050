"""The verdict on one engine and everything it rests on (docs/bundle-format.md, section 9)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from flss_runtime.attacked import RobustComparison
from flss_runtime.comparison import Comparison
from flss_runtime.flips import FlipTest, Verdict

STORED = "votes of the trainer's framework in reference.npz"
GOLDEN = "tensors and votes of the trainer's framework in golden.npz"


@dataclass(frozen=True, slots=True)
class EquivalenceReport:
    """The verdict on one engine, with one precision of the graphs, for one bundle.

    Attributes:
        engine: Engine that was examined, as `open_engine` knows it.
        precision: Precision of the graphs that was asked for.
        facts: What the engine says of itself: library, device, and the precision that each graph really runs in.
        bundle: The bundle's digest.
        budget: Rate of changed decisions that is allowed.
        thresholds: Calibrated min_votes and min_confidence that rejections were counted with, None where there is none.
        golden: Replay of golden.npz: stored noise, tensors and votes.
        reference: Replay of reference.npz: votes on many images; None where the bundle has none.
        data: The same on images of one's own; None where there are none. Where there are, they are what is judged.
        data_reference: What the engine is compared with on them.
        adversarial: Robust accuracy on attacked images; None where there are none.
        fused_golden: The fused graph's replay of golden.npz; this and the next are None where no such graph runs here.
        fused: Its replay of the judged images, whose changed decisions are held against the budget too.
        logit: The Gaussian that the logit graph gives for the golden images, against encoder and head.
        logit_votes: What is decided by it on the judged images, against the float32 graphs on ONNX Runtime, at the
            fixed points of deterministic sampling; held against the budget too. None where nothing runs it here, or no
            images are judged.
        logit_min_votes: Threshold that its rejections were counted with.
        other_noise: The engine beside itself under other noise, on up to 300 of the judged images: how often a decision
            changes from one look at an image to the next; None where no images were compared.
        notes: What a reader has to know to weigh the verdict.
        unsure: What could not be found out about the engine, in words; with any of it the verdict cannot be `passed`.
    """

    engine: str
    precision: str
    facts: Mapping[str, Any]
    bundle: str
    budget: float
    thresholds: tuple[int | None, float | None]
    golden: Comparison
    reference: Comparison | None
    data: Comparison | None = None
    data_reference: str = ""
    adversarial: RobustComparison | None = None
    fused_golden: Comparison | None = None
    fused: Comparison | None = None
    logit: Comparison | None = None
    logit_votes: Comparison | None = None
    logit_min_votes: int | None = None
    other_noise: Comparison | None = None
    notes: tuple[str, ...] = ()
    unsure: tuple[str, ...] = ()

    @property
    def judged(self) -> Comparison | None:
        """The images whose changed decisions are held against the budget: one's own, else the reference images."""
        return self.data or self.reference

    @property
    def against(self) -> str:
        """What the decisions on them are compared with; where there are none, what the golden images are."""
        if self.data:
            return self.data_reference
        return STORED if self.reference else GOLDEN

    @property
    def flips(self) -> tuple[FlipTest, ...]:
        """Each kind of changed decision, judged; empty where no images were compared."""
        found = self.judged.flip_tests(self.budget) if self.judged else ()
        further = {"fused": self.fused, "logit": self.logit_votes}
        again = {kind: part.flip_tests(self.budget) for kind, part in further.items() if part is not None}
        named = (replace(test, kind=f"{kind} {test.kind}") for kind, tests in again.items() for test in tests)
        return (*found, *named)

    @property
    def failures(self) -> tuple[str, ...]:
        """What exceeds a limit or the budget, in words."""
        further = (self.fused_golden, self.fused, self.logit, self.logit_votes)
        parts = (self.golden, self.reference, self.data, self.adversarial, *further)
        failures = [failure for part in parts if part is not None for failure in part.failures]
        return (*failures, *(str(test) for test in self.flips if test.verdict is Verdict.FAILED))

    @property
    def doubts(self) -> tuple[str, ...]:
        """Why a verdict without failure still is none, in words."""
        if self.judged is None:
            return (*self.unsure, "no images were compared but the golden ones: nothing is known of changed decisions")
        return (*self.unsure, *(str(test) for test in self.flips if test.verdict is Verdict.INCONCLUSIVE))

    @property
    def verdict(self) -> Verdict:
        """`failed` where there is a failure, `inconclusive` where there is a doubt, else `passed`."""
        if self.failures:
            return Verdict.FAILED
        return Verdict.INCONCLUSIVE if self.doubts else Verdict.PASSED

    @property
    def passed(self) -> bool:
        """True iff the verdict is `passed`."""
        return self.verdict is Verdict.PASSED

    def to_json(self) -> dict[str, Any]:
        """Return the verdict, what it rests on and every comparison as JSON values."""
        return {
            "verdict": self.verdict.value,
            "passed": self.passed,
            "engine": self.engine,
            "precision": self.precision,
            "facts": dict(self.facts),
            "bundle": self.bundle,
            "against": self.against,
            "budget": self.budget,
            "min_votes": self.thresholds[0],
            "min_confidence": self.thresholds[1],
            "logit_min_votes": self.logit_min_votes,
            "flips": [test.to_json() for test in self.flips],
            "golden": self.golden.to_json(),
            "reference": self.reference.to_json() if self.reference else None,
            "data": {**self.data.to_json(), "reference": self.data_reference} if self.data else None,
            "adversarial": self.adversarial.to_json() if self.adversarial else None,
            "fused_golden": self.fused_golden.to_json() if self.fused_golden else None,
            "fused": self.fused.to_json() if self.fused else None,
            "logit": self.logit.to_json() if self.logit else None,
            "logit_votes": self.logit_votes.to_json() if self.logit_votes else None,
            "other_noise": self.other_noise.to_json() if self.other_noise else None,
            "failures": list(self.failures),
            "doubts": list(self.doubts),
            "notes": list(self.notes),
        }
