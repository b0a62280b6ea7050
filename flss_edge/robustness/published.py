"""Table 1 of the FLSS paper: published figures to print beside ours, none of them measured here.

ResNet-18, radius 8/255, the worst case over PGD, APGD-CE, APGD-DLR, PGD-CW, GAMA-PGD and GAMA-MT of 100 steps each, all
of which attack the path without sampling, on the 10,000 test images. The threshold comes from the test images too.
"""

from __future__ import annotations

from dataclasses import dataclass

SOURCE = (
    "Addepalli et al., Boosting Adversarial Robustness using Feature Level Stochastic Smoothing, CVPR Workshops 2021, "
    "Table 1"
)


@dataclass(frozen=True)
class PublishedRow:
    """One row of the table, in percent as printed; None where the table has no figure.

    Attributes:
        method: CCAT+FLSS repeats figures of other rows instead of a measured cascade.
        thresholding: what is compared with the threshold: "conf" or "vote".
        nat_ns: accuracy on clean images without sampling; `_0`: of the answers, nothing rejected; `_10`: of the
            accepted, where a tenth of all images may be right and rejected.
        adv_ns: the same in the worst case over the attacks.
        fc: accepted and correct under every attack.
        fw: accepted and wrong under at least one.
        mpr: rejected under at least one.
    """

    method: str
    thresholding: str
    nat_ns: float
    nat_0: float | None
    nat_10: float
    adv_ns: float
    adv_0: float | None
    adv_10: float
    fc: float
    fw: float
    mpr: float


TABLE = {
    "cifar10": (
        PublishedRow("PGD-AT", "conf", 83.80, 83.80, 91.93, 49.07, 49.07, 51.15, 43.99, 42.00, 44.19),
        PublishedRow("TRADES", "conf", 81.77, 81.77, 90.26, 49.43, 49.43, 51.85, 44.13, 40.97, 44.34),
        PublishedRow("AWP", "conf", 80.58, 80.58, 89.14, 49.80, 49.80, 53.01, 44.06, 39.05, 44.01),
        PublishedRow("CCAT", "conf", 89.92, 89.92, 97.52, 0.00, 0.00, 0.00, 0.00, 8.52, 100.00),
        PublishedRow("FLSS, noise scale 1", "conf", 80.51, 80.51, 89.10, 50.64, 50.64, 54.06, 42.28, 35.84, 42.18),
        PublishedRow("FLSS, noise scale 2", "vote", 80.51, 77.68, 89.63, 50.64, 51.00, 56.16, 43.16, 33.69, 47.42),
        PublishedRow("CCAT+FLSS", "conf+vote", 80.51, None, 89.10, 50.64, None, 56.16, 43.16, 33.69, 47.42),
    ),
    "cifar100": (
        PublishedRow("PGD-AT", "conf", 56.13, 56.13, 74.30, 25.40, 25.40, 26.06, 23.30, 66.08, 59.08),
        PublishedRow("TRADES", "conf", 57.84, 57.84, 74.09, 24.33, 24.33, 23.84, 22.70, 72.49, 57.12),
        PublishedRow("AWP", "conf", 58.21, 58.21, 74.31, 25.16, 25.16, 25.07, 23.43, 70.01, 55.77),
        PublishedRow("FLSS, noise scale 1", "conf", 51.86, 51.86, 70.86, 25.57, 25.57, 28.79, 23.51, 58.14, 56.48),
        PublishedRow("FLSS, noise scale 2", "vote", 51.86, 47.50, 74.35, 25.57, 25.57, 29.95, 22.01, 51.46, 65.61),
    ),
}


def published(data: str) -> tuple[PublishedRow, ...]:
    """Return the rows for a data set.

    Args:
        data: its name, or the description of an image set that contains it, such as "cifar10.npz:test".

    Returns:
        () where the paper has none.
    """
    name = data.lower().replace("-", "").replace("_", "")
    # The longer name first: "cifar100" contains "cifar10".
    return next((TABLE[known] for known in sorted(TABLE, key=len, reverse=True) if known in name), ())
