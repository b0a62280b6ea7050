"""The published rows agree with each other as far as the paper's own definitions tie them together."""

from __future__ import annotations

import pytest

from flss_edge.robustness.published import TABLE, PublishedRow, published

ROWS = [pytest.param(row, id=f"{data} {row.method}") for data, rows in TABLE.items() for row in rows]


@pytest.mark.parametrize("row", ROWS)
def test_accuracy_of_the_accepted_is_what_fc_and_fw_say(row: PublishedRow) -> None:
    # The largest gap is FLSS with noise scale 1 on CIFAR-10: 54.12 against the printed 54.06.
    assert 100 * row.fc / (row.fc + row.fw) == pytest.approx(row.adv_10, abs=0.065)


@pytest.mark.parametrize("row", ROWS)
def test_the_sets_fit_into_all_images(row: PublishedRow) -> None:
    assert row.fc + row.fw <= 100
    assert row.fc + row.mpr <= 100
    assert 100 - row.fc <= row.fw + row.mpr + 0.01  # what is not in S_FC is in S_FW, R or both


@pytest.mark.parametrize("row", [case for case in ROWS if case.values[0].thresholding == "conf"])
def test_confidence_of_the_path_without_sampling_changes_no_answer(row: PublishedRow) -> None:
    assert (row.nat_0, row.adv_0) == (row.nat_ns, row.adv_ns)


# docs/method.md, section 7: 100 - FW, and (nat_0 - 10) / nat_10 if exactly ten points of the correct are rejected.
DERIVED = {
    ("cifar10", "PGD-AT"): (58.00, 80.3),
    ("cifar10", "TRADES"): (59.03, 79.5),
    ("cifar10", "AWP"): (60.95, 79.2),
    ("cifar10", "CCAT"): (91.48, 82.0),
    ("cifar10", "FLSS, noise scale 1"): (64.16, 79.1),
    ("cifar10", "FLSS, noise scale 2"): (66.31, 75.5),
    ("cifar100", "PGD-AT"): (33.92, 62.1),
    ("cifar100", "TRADES"): (27.51, 64.6),
    ("cifar100", "AWP"): (29.99, 64.9),
    ("cifar100", "FLSS, noise scale 1"): (41.86, 59.1),
    ("cifar100", "FLSS, noise scale 2"): (48.54, 50.4),
}


@pytest.mark.parametrize("key", DERIVED)
def test_derived_figures(key: tuple[str, str]) -> None:
    row = next(row for row in TABLE[key[0]] if row.method == key[1])
    assert row.nat_0 is not None
    one_minus_fw, coverage = DERIVED[key]
    assert 100 - row.fw == pytest.approx(one_minus_fw, abs=0.001)
    assert 100 * (row.nat_0 - 10) / row.nat_10 == pytest.approx(coverage, abs=0.051)


@pytest.mark.parametrize(
    ("data", "count"),
    [("cifar10.npz:test", 7), ("CIFAR-100:test", 5), ("cifar_100", 5), ("imagenet", 0), ("", 0)],
)
def test_rows_are_found_by_what_the_data_are_called(data: str, count: int) -> None:
    assert len(published(data)) == count
