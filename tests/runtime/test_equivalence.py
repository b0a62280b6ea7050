from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from flss_runtime.arrays import read_arrays, read_golden, read_reference
from flss_runtime.bundle import store_calibration
from flss_runtime.comparison import Outputs, compare, count_votes
from flss_runtime.decision import tally
from flss_runtime.equivalence import verify_bundle
from flss_runtime.errors import BundleError
from flss_runtime.flips import Verdict

from .bundles import NUM_SAMPLES, entry, golden_arrays, npz, reference_arrays, votes_of, write_tiny

WIDE = 0.05  # a budget that 60 images without a changed decision can show


class TestCompare:
    def test_equal(self) -> None:
        votes = np.array([[90, 10, 0], [40, 30, 30]])
        tensors = {"mean": np.ones((2, 4), np.float32)}
        found = compare(Outputs(votes, tensors), Outputs(votes, tensors), min_votes=50)
        assert found.passed and found.failures == ()
        assert (found.class_flips, found.rejection_flips, found.largest_vote_change) == (0, 0, 0)
        assert found.tensor_differences == {"mean": 0.0}
        assert found.class_flip_bound == pytest.approx(1 - 0.05**0.5)

    def test_a_near_tie_may_flip(self) -> None:
        before, after = np.array([[50, 49, 1], [60, 40, 0]]), np.array([[49, 50, 1], [60, 40, 0]])
        found = compare(Outputs(before), Outputs(after), min_votes=50)
        assert found.passed
        assert (found.class_flips, found.clear_winner_flips, found.largest_vote_change) == (1, 0, 1)
        assert found.rejection_flips == 0  # accepted before and after

    def test_rejection_flips_follow_the_one_rule(self) -> None:
        before, after = np.array([[50, 49, 1], [49, 50, 1]]), np.array([[49, 49, 2], [49, 50, 1]])
        assert compare(Outputs(before), Outputs(after), min_votes=50).rejection_flips == 1
        assert compare(Outputs(before), Outputs(after), min_votes=0).rejection_flips == 0
        found = compare(Outputs(before), Outputs(after))
        assert found.rejection_flips is None and found.rejection_flip_bound is None

    def test_more_than_one_vote_fails(self) -> None:
        found = compare(Outputs(np.array([[80, 20]])), Outputs(np.array([[78, 22]])))
        assert found.failures == ("reference: a vote count changed by 2, allowed 1",)

    def test_a_clear_winner_may_not_change(self) -> None:
        found = compare(Outputs(np.array([[52, 48]])), Outputs(np.array([[48, 52]])), name="golden")
        assert found.clear_winner_flips == 1 and not found.passed
        assert any("golden: 1 of 1 winners changed" in failure for failure in found.failures)
        assert compare(Outputs(np.array([[51, 49]])), Outputs(np.array([[49, 51]]))).clear_winner_flips == 0

    @pytest.mark.parametrize(
        ("scale", "difference", "passes"),
        [(1, 0.9e-4, True), (1, 1.2e-4, False), (50, 4e-3, True), (50, 6e-3, False), (0.01, 0.9e-4, True)],
    )
    def test_tensor_limit_grows_with_the_tensor_only(self, scale: float, difference: float, passes: bool) -> None:
        votes = np.array([[80, 20]])
        expected = np.array([[scale, -scale / 2]])
        shifted = expected + np.array([[0, difference]])
        found = compare(Outputs(votes, {"logits": expected}), Outputs(votes, {"logits": shifted}))
        assert found.passed is passes
        assert found.tensor_differences["logits"] == pytest.approx(difference)

    @pytest.mark.parametrize("bad", [np.array([[np.nan, 0]]), np.array([[np.inf, 0]]), np.zeros((1, 3)), None])
    def test_not_finite_or_absent_fails(self, bad: Any) -> None:
        votes = np.array([[80, 20]])
        tensors = {} if bad is None else {"mean": bad}
        found = compare(Outputs(votes, {"mean": np.zeros((1, 2))}), Outputs(votes, tensors))
        assert not found.passed
        assert json.loads(json.dumps(found.to_json(), allow_nan=False))["tensor_differences"] == {"mean": None}

    @pytest.mark.parametrize(
        ("one", "other"),
        [([[5, 5]], [[5, 5, 0]]), ([[5, 5]], [[5, 4]]), ([[6, -1]], [[5, 0]]), ([5, 5], [5, 5]), ([[0, 0]], [[0, 0]])],
    )
    def test_votes_that_are_none(self, one: Any, other: Any) -> None:
        with pytest.raises(ValueError):
            compare(Outputs(np.array(one)), Outputs(np.array(other)))

    @given(arrays.arrays(np.int64, st.tuples(st.integers(1, 6), st.integers(1, 9)), elements=st.integers(0, 4)))
    def test_counts_agree_with_the_tally(self, choices: Any) -> None:
        votes = count_votes(choices, 5)
        assert (votes == votes_of(choices, 5)).all()
        winners, most = tally(choices)
        assert (votes.argmax(axis=1) == winners).all() and (votes.max(axis=1) == most).all()


class TestVerify:
    def test_passes_on_real_graphs(self, tiny: Any, tmp_path: Path) -> None:
        bundle = write_tiny(tmp_path / "b", tiny, files={"reference.npz": npz(reference_arrays(tiny))})
        report = verify_bundle(bundle.path, threads=1, budget=WIDE)
        assert report.passed and report.failures == ()
        assert [note.split(":")[0] for note in report.notes] == ["not calibrated for N = 40"]
        assert report.engine == "ort" and report.bundle == bundle.digest
        assert report.reference is not None and report.reference.images == 60 and report.reference.real
        assert report.reference.class_flips == 0 and report.reference.rejection_flips is None
        assert set(report.golden.tensor_differences) == {"mean", "std", "logits"}
        assert max(report.golden.tensor_differences.values()) < 1e-4

        bundle = store_calibration(bundle, entry())
        report = verify_bundle(bundle, threads=1, budget=WIDE)
        assert report.reference is not None and report.reference.rejection_flips == 0 and report.notes == ()
        assert report.golden.rejection_flips == 0
        found = json.loads(json.dumps(report.to_json(), allow_nan=False))
        assert found["passed"] is True and found["reference"]["rejection_flips"] == 0

    def test_says_synthetic(self, tiny: Any, tmp_path: Path) -> None:
        files = {"reference.npz": npz(reference_arrays(tiny, real=False))}
        report = verify_bundle(write_tiny(tmp_path / "b", tiny, files=files), threads=1, budget=WIDE)
        assert report.passed and report.reference is not None and report.reference.real is False
        assert "synthetic" in report.notes[0]

    def test_says_that_there_is_no_reference(self, tiny: Any, tmp_path: Path) -> None:
        report = verify_bundle(write_tiny(tmp_path / "b", tiny), threads=1)
        assert report.verdict is Verdict.INCONCLUSIVE and report.flips == () and report.failures == ()
        assert report.reference is None and report.to_json()["reference"] is None
        assert "no images were compared" in report.doubts[0]
        assert "no reference images" in report.notes[0] and not report.golden.real

    def test_another_network_fails(self, tiny: Any, make_model: Any, tmp_path: Path) -> None:
        other = make_model(seed=9)
        files = {
            "encoder.onnx": other.encoder,
            "head.onnx": other.head,
            "reference.npz": npz(reference_arrays(tiny)),
        }
        report = verify_bundle(write_tiny(tmp_path / "b", tiny, files=files), threads=1)
        assert not report.passed and not report.golden.passed
        assert report.reference is not None and report.reference.clear_winner_flips > 0
        assert any(failure.startswith("golden: logits differs by") for failure in report.failures)
        assert any(failure.startswith("reference: a vote count changed") for failure in report.failures)

    def test_a_wrong_noise_seed_fails(self, tiny: Any, tmp_path: Path) -> None:
        arrays = {**reference_arrays(tiny), "seed": np.int64(8)}
        report = verify_bundle(write_tiny(tmp_path / "b", tiny, files={"reference.npz": npz(arrays)}), threads=1)
        assert report.golden.passed and report.reference is not None and not report.reference.passed

    def test_graphs_of_other_sizes(self, tiny: Any, make_model: Any, tmp_path: Path) -> None:
        for other in (make_model(latent_dim=8), make_model(num_classes=7)):
            bundle = write_tiny(tmp_path / f"{id(other)}", tiny, files={"head.onnx": other.head})
            with pytest.raises(BundleError, match="export the bundle again"):
                verify_bundle(bundle, threads=1)

    def test_needs_no_torch(self) -> None:
        code = "import sys, flss_runtime.equivalence, flss_runtime.calibration; sys.exit('torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def changed(name: str, value: Any) -> Any:
    def edit(arrays: dict[str, Any]) -> dict[str, Any]:
        return {key: array for key, array in {**arrays, name: value}.items() if array is not None}

    return edit


class TestArrays:
    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("mean", None, "'mean' is missing"),
            ("choices", None, "'choices' is missing"),
            ("mean", np.zeros((4, 3), np.float32), r"'mean' is float32 \(4, 3\)"),
            ("images", np.zeros((4, 8, 8, 3), np.uint16), "expected uint8"),
            ("images", np.zeros((4, 9, 8, 3), np.uint8), "'images' is"),
            ("logits", np.zeros((4, NUM_SAMPLES, 5), np.int64), "'logits' is int64"),
            ("std", np.full((4, 16), np.nan, np.float32), "NaN"),
            ("noise_scale", np.float32(-1), "negative"),
            ("choices", np.full((4, NUM_SAMPLES), 5), "leave the range 0 to 4"),
            ("choices", np.zeros((0, NUM_SAMPLES), np.int64), "empty"),
        ],
    )
    def test_golden(self, tiny: Any, tmp_path: Path, name: str, value: Any, message: str) -> None:
        files = {"golden.npz": npz(changed(name, value)(golden_arrays(tiny)))}
        bundle = write_tiny(tmp_path / "b", tiny, files=files)
        with pytest.raises(BundleError, match=message):
            read_golden(bundle)

    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("votes", np.zeros((60, 5), np.int64), "do not add up"),
            ("votes", np.zeros((60, 4), np.int64), "'votes' is"),
            ("num_samples", np.int64(39), "do not add up"),
            ("seed", np.int64(-1), "negative"),
            ("seed", np.float32(1), "'seed' is float32"),
            ("labels", np.zeros(59, np.int64), "'labels' is"),
            ("real", None, "'real' is missing"),
        ],
    )
    def test_reference(self, tiny: Any, tmp_path: Path, name: str, value: Any, message: str) -> None:
        files = {"reference.npz": npz(changed(name, value)(reference_arrays(tiny)))}
        with pytest.raises(BundleError, match=message):
            read_reference(write_tiny(tmp_path / "b", tiny, files=files))

    def test_labels_may_be_absent(self, tiny: Any, tmp_path: Path) -> None:
        files = {"reference.npz": npz(changed("labels", None)(reference_arrays(tiny)))}
        reference = read_reference(write_tiny(tmp_path / "b", tiny, files=files))
        assert reference is not None and reference.labels is None

    @pytest.mark.parametrize("order", ["C", "F"])
    @pytest.mark.parametrize("dtype", ["u1", "<i4", ">i8", "<f4", "?"])
    def test_reads_what_numpy_writes(self, tmp_path: Path, order: Any, dtype: str) -> None:
        array = np.asarray(np.arange(24).reshape(2, 3, 4) % 2, dtype=dtype, order=order)
        (tmp_path / "a.npz").write_bytes(npz({"a": array, "scalar": np.int64(3)}))
        found = read_arrays(tmp_path / "a.npz")
        assert found["a"].dtype == array.dtype and (found["a"] == array).all()
        assert found["scalar"].shape == () and found["scalar"] == 3

    def test_never_unpickles(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", a=np.array([{"harmless": 1}], dtype=object), allow_pickle=True)
        with pytest.raises(BundleError, match="pickled objects are never read"):
            read_arrays(tmp_path / "a.npz")

    def test_a_header_that_promises_too_much(self, tmp_path: Path) -> None:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**12,)})
        for shape in [header.getvalue(), header.getvalue().replace(b"(1000000000000,)", b"(-99999,-999999)")]:
            with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
                archive.writestr("a.npy", shape)
            with pytest.raises(BundleError, match="bytes are stored"):
                read_arrays(tmp_path / "a.npz")

    def test_limits(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "a.npz"
        np.savez(path, **{f"a{index}": np.zeros(1) for index in range(33)})
        with pytest.raises(BundleError, match="more than 32 arrays"):
            read_arrays(path)
        path.write_bytes(npz({"a": np.zeros((520, 1 << 20), np.uint8)}))  # a small file that unpacks to 520 MiB
        with pytest.raises(BundleError, match="larger than 512 MiB when unpacked"):
            read_arrays(path)
        with path.open("wb") as stream:
            stream.truncate((64 << 20) + 1)
        with pytest.raises(BundleError, match="larger than 64 MiB"):
            read_arrays(path)

    @pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 damaged"])
    def test_no_archive(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "a.npz").write_bytes(content)
        with pytest.raises(BundleError, match="not a readable archive"):
            read_arrays(tmp_path / "a.npz")

    def test_damaged_content_is_found_by_its_checksum(self, tmp_path: Path) -> None:
        content = bytearray(npz({"a": np.arange(10_000)}))
        content[len(content) // 2] ^= 0xFF
        (tmp_path / "a.npz").write_bytes(content)
        with pytest.raises(BundleError, match="not a readable archive"):
            read_arrays(tmp_path / "a.npz")
