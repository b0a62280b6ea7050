"""`flss-edge demo`: the whole way once, on real images, with the checkpoint that comes with the repository."""

from __future__ import annotations

from pathlib import Path

from flss_edge.cli import bench, calibrate, export, predict, verify
from flss_edge.cli.output import say
from flss_runtime.errors import UsageError

# Relative to the repository's root: the checkpoint and the pictures are not part of the installed package.
CHECKPOINT = Path("models/cifar10-w8.pt")
CALIBRATION_IMAGES = Path("examples/cifar10/calibration")
TEST_IMAGES = Path("examples/cifar10/test")
BUNDLE = Path("build/demo/cifar10.bundle")
BUDGET = 0.08  # of changed decisions: what 40 images can show
SEED = 0  # of the demo's noise, so that everybody sees the same table


def demo() -> None:
    """Run the whole way on the shipped model.

    Export, verify, calibrate, predict and bench, in the repository's root.
    """
    missing = [str(path) for path in (CHECKPOINT, CALIBRATION_IMAGES, TEST_IMAGES) if not path.exists()]
    if missing:
        raise UsageError(
            f"the demo's files are not in this folder: {', '.join(missing)}",
            "run `make demo` (or `flss-edge demo`) in the root of the flss-edge repository",
        )
    BUNDLE.parent.mkdir(parents=True, exist_ok=True)
    say(f"1/5 export {CHECKPOINT} -> {BUNDLE}")
    export.export(CHECKPOINT, BUNDLE, data=TEST_IMAGES, overwrite=True)
    say(f"\n2/5 verify: does ONNX Runtime still decide as torch did? So few images can show {BUDGET:.0%}, no less")
    verify.verify(BUNDLE, budget=BUDGET)
    say(f"\n3/5 calibrate on {CALIBRATION_IMAGES}: reject at most 10 % of all images although they are right")
    calibrate.calibrate(BUNDLE, CALIBRATION_IMAGES, split="test", seed=SEED)
    say(f"\n4/5 predict the pictures of {TEST_IMAGES}")
    predict.predict([BUNDLE, TEST_IMAGES], seed=SEED)
    say("\n5/5 bench: what do 100 samples cost on this machine?")
    bench.bench(BUNDLE, profile="quick", arms="n1,n100", batches="none", allow_invalid=True)
    say(
        "\nThis network does a sixtieth of ResNet-18's work an image, so the votes' fixed cost weighs heavily here; "
        "benchmarks/results/README.md has the figures at full width."
    )
