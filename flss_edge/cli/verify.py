"""`flss-edge verify`: does this engine still decide as the trainer's framework did?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flss_edge.cli.options import (
    BundleArgument,
    CheckpointOption,
    DataOption,
    EngineOption,
    FormatOption,
    OutputOption,
    OverwriteOption,
    PrecisionOption,
    StrictOption,
    ThreadsOption,
    require_training,
    resolve_bundle,
)
from flss_edge.cli.output import Document, check_output, emit, progress, say
from flss_edge.cli.verify_report import COLUMNS, lines_of, rows_of
from flss_runtime.errors import CheckFailed, UsageError
from flss_runtime.flips import BUDGET, Verdict

if TYPE_CHECKING:
    from flss_edge.data import ImageSet
    from flss_edge.robustness.adversarial_set import AdversarialSet
    from flss_runtime.attacked import Attack, AttackedImages
    from flss_runtime.bundle import Bundle
    from flss_runtime.equivalence_report import EquivalenceReport


def verify(
    bundle: BundleArgument = None,
    data: DataOption = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Use so many images of --data, evenly spaced.")
    ] = None,
    checkpoint: CheckpointOption = None,
    gate: Annotated[
        Path | None, typer.Option("--gate", help="With --checkpoint: the checkpoint of a cascade's gate.")
    ] = None,
    adversarial: Annotated[
        Path | None,
        typer.Option("--adversarial", help="Attacked images that `evaluate --save-adversarial` wrote."),
    ] = None,
    budget: Annotated[
        float, typer.Option("--budget", help="Share of decisions that may change; the images have to show it at 95 %.")
    ] = BUDGET,
    engine: EngineOption = "ort",
    precision: PrecisionOption = "fp32",
    strict: StrictOption = True,
    threads: ThreadsOption = None,
    form: FormatOption = None,
    output: OutputOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Check that an engine decides as the checkpoint.

    Every digest is checked and the stored images are replayed; exit 1 if more decisions change than the budget allows,
    or if there are too few images to tell (598 without a change for 0.5 %). Graphs in fp32 have to give the same
    numbers too.

    With --data these images are judged instead: against the fp32 graphs on ONNX Runtime, or with --checkpoint against
    torch. With --adversarial robust accuracy is compared as well.
    """
    from flss_runtime.bundle import load_bundle
    from flss_runtime.equivalence import verify_bundle

    check_output(form, output, overwrite)
    loaded = load_bundle(resolve_bundle(bundle))
    request = _Request(loaded, data, limit, checkpoint, gate, engine, precision, threads, strict)
    request.check()
    images, saved = request.images(), None if adversarial is None else _Saved.read(loaded, adversarial)
    with progress() as report_progress:
        report = verify_bundle(
            loaded,
            engine,
            precision=precision,
            threads=threads,
            strict=strict,
            budget=budget,
            images=None if images is None or checkpoint is not None else images.images,
            attacked=None if saved is None else saved.attacked(),
            progress=report_progress,
        )
    if images is not None and checkpoint is not None:
        report = replace(report, data=request.with_torch(images.images), data_reference="torch")
    if saved is not None:
        report = replace(report, notes=(*report.notes, *saved.doubts(loaded)))
    _emit(report, request, images, form, output, overwrite)
    _conclude(report, loaded, checkpoint)


@dataclass(frozen=True)
class _Request:
    """What is to be compared with what."""

    bundle: Bundle
    data: Path | None
    limit: int | None
    checkpoint: Path | None
    gate: Path | None
    engine: str
    precision: str
    threads: int | None
    strict: bool

    def check(self) -> None:
        """Refuse options that make no sense together, before anything is run."""
        if self.checkpoint is not None and self.data is None:
            raise UsageError(
                "--checkpoint was given without --data", "give both to compare with torch on your images, or neither"
            )
        if self.limit is not None and self.data is None:
            raise UsageError("--limit was given without --data", "name the images with --data")
        has_gate = self.bundle.has_gate
        if self.gate is not None and not (has_gate and self.checkpoint):
            reason = "--checkpoint" if has_gate else "a gate in the bundle"
            fix = "leave it out, or name a cascade and both checkpoints"
            raise UsageError(f"--gate was given without {reason}", fix)
        if self.checkpoint is not None and has_gate and self.gate is None:
            problem = f"{self.bundle.path} has a gate, which --checkpoint does not cover"
            raise UsageError(problem, "add --gate CHECKPOINT")
        if self.checkpoint is not None:
            require_training("verify --checkpoint")

    def images(self) -> ImageSet | None:
        if self.data is None:
            return None
        from flss_edge.cli.labelled import load_for_bundle

        return load_for_bundle(self.bundle, self.data, "test", self.limit)

    def with_torch(self, images: Any) -> Any:
        from flss_edge.checkpoint import load_checkpoint
        from flss_export.parity import parity

        assert self.checkpoint is not None
        plain = None if self.gate is None else load_checkpoint(self.gate)
        options: dict[str, Any] = {"engine": self.engine, "precision": self.precision, "threads": self.threads}
        options |= {"gate": plain, "strict": self.strict}
        return parity(load_checkpoint(self.checkpoint), self.bundle, images, **options)

    def config(self, report: EquivalenceReport, images: ImageSet | None) -> dict[str, Any]:
        known = {} if images is None else {"data": images.source, "data_sha256": images.sha256}
        options = {"precision": self.precision, "threads": self.threads, "budget": report.budget}
        return {"engine": report.engine, **options, **known}


@dataclass(frozen=True)
class _Saved:
    """Attacked images in a file, read one attack at a time."""

    file: AdversarialSet

    @classmethod
    def read(cls, bundle: Bundle, path: Path) -> _Saved:
        from flss_edge.cli.evaluate_bundle import check_fits
        from flss_edge.robustness.adversarial_set import read_adversarial_set

        found = read_adversarial_set(path)
        check_fits(bundle, found)
        return cls(found)

    def __iter__(self) -> Iterator[Attack]:
        from flss_edge.cli.evaluate_bundle import in_the_ball
        from flss_runtime.attacked import Attack

        for attack, images in zip(self.file.attacks, in_the_ball(self.file), strict=True):
            yield Attack(str(attack["name"]), images, "corruption" not in attack["groups"])

    def attacked(self) -> AttackedImages:
        from flss_runtime.attacked import AttackedImages

        seed = self.file.description.get("seed")
        return AttackedImages(self.file.labels, self, seed if isinstance(seed, int) and seed >= 0 else 0)

    def doubts(self, bundle: Bundle) -> list[str]:
        if self.file.description.get("sha256") == bundle.manifest["checkpoint"]["sha256"]:
            return []
        return ["WARNING the attacked images were made against another checkpoint: they are weaker here"]


def _emit(
    report: EquivalenceReport,
    request: _Request,
    images: ImageSet | None,
    form: Any,
    output: Path | None,
    overwrite: bool,
) -> None:
    document = Document(
        command="verify",
        columns=COLUMNS,
        rows=rows_of(report),
        results=report.to_json(),
        artifact={"bundle": str(request.bundle.path), "digest": request.bundle.digest},
        config=request.config(report, images),
        notes=[*lines_of(report), *report.notes],
    )
    emit(document, form, output, overwrite)


def _conclude(report: EquivalenceReport, bundle: Bundle, checkpoint: Path | None) -> None:
    """Say the verdict on stderr.

    Raises:
        CheckFailed: it is not `passed`.
    """
    how = f"{report.engine} in {report.precision}"
    if report.verdict is Verdict.FAILED:
        again = "export again with this engine's versions installed, or choose another --engine"
        reduced = "choose another --precision or another --engine, and verify that"
        raise CheckFailed(
            f"{bundle.path} does not decide as its checkpoint on engine {how}: {'; '.join(report.failures)}",
            f"do not deploy it: {again if report.precision == 'fp32' else reduced}",
        )
    if report.verdict is Verdict.INCONCLUSIVE:
        with_torch = " --checkpoint CHECKPOINT" if how == "ort in fp32" and checkpoint is None else ""
        accepting = "export the bundle again with --data, which keeps 600"
        if report.judged is not None:
            accepting = "state with --budget what rate you can accept"
        raise CheckFailed(
            f"{bundle.path} on engine {how} is inconclusive: {'; '.join(report.doubts)}",
            f"judge more images: --data DATA{with_torch}; or {accepting}",
        )
    say(f"VERIFY PASSED: {bundle.path} decides as its checkpoint on engine {how}")
