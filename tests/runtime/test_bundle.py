from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from flss_runtime import bundle as bundle_module
from flss_runtime.bundle import Bundle, find_bundle, load_bundle, store_calibration, write_bundle
from flss_runtime.decision import SmoothingPolicy
from flss_runtime.errors import (
    BundleError,
    EngineUnavailable,
    OutputError,
    UncalibratedError,
    UsageError,
)
from flss_runtime.integrity import sha256_file
from flss_runtime.strict_json import canonical_json

from .bundles import edit_manifest, entry, manifest_fields, npz, seal_policy, write_tiny

JSON = dict[str, Any]


class TestLoad:
    def test_everything_is_there(self, pristine: Path, tiny: Any) -> None:
        bundle = load_bundle(str(pristine))
        assert bundle.digest == hashlib.sha256((pristine / "manifest.json").read_bytes()).hexdigest()
        assert bundle.input == tiny.spec
        assert bundle.class_names == ("class 0", "class 1", "class 2", "class 3", "class 4")
        assert (bundle.latent_dim, bundle.num_classes) == (16, 5)
        assert bundle.graph("encoder") == pristine / "encoder.onnx"
        assert bundle.policy() == SmoothingPolicy(40, 2.0, 17)
        assert bundle.file("golden.npz") == pristine / "golden.npz"
        assert bundle.file("reference.npz") is None

    def test_a_missing_graph_or_precision(self, pristine: Path) -> None:
        bundle = load_bundle(pristine)
        with pytest.raises(EngineUnavailable, match="in fp32, not in fp16") as caught:
            bundle.graph("encoder", "fp16")
        assert "flss-edge export CHECKPOINT --precision fp16" in caught.value.fix
        with pytest.raises(UsageError, match="no precision 'half'"):
            bundle.graph("encoder", "half")
        for role in ("deterministic", "manifest"):
            with pytest.raises(BundleError, match="has no"):
                bundle.graph(role)

    def test_a_second_precision(self, tmp_path: Path, tiny: Any) -> None:
        fields = manifest_fields(tiny)
        changed = {
            "graphs": {**fields["graphs"], "encoder.fp16": "encoder.fp16.onnx"},
            "precision": {**fields["precision"], "encoder.fp16": "fp16"},
        }
        bundle = write_tiny(tmp_path / "b", tiny, manifest=changed, files={"encoder.fp16.onnx": b"half"})
        assert bundle.graph("encoder", "fp16").name == "encoder.fp16.onnx"
        assert bundle.graph("encoder").name == "encoder.onnx"
        assert (bundle.precisions(), bundle.precisions("head")) == (("fp32", "fp16"), ("fp32",))
        assert bundle.precisions("gate") == ()

    def test_uncalibrated(self, place: Path) -> None:
        bundle = load_bundle(place)
        with pytest.raises(UncalibratedError, match="N = 10 ") as caught:
            bundle.policy(10)
        assert caught.value.fix == f"flss-edge calibrate {place} --data DATA --budget 0.10 -n 10"
        with pytest.raises(UsageError):
            bundle.policy(0)
        seal_policy(place, lambda policy: policy.update(noise_scale=1.0))
        with pytest.raises(UncalibratedError, match="N = 40 at scale 2"):
            load_bundle(place).policy()

    def test_entries_of_an_unknown_mode_are_ignored(self, place: Path) -> None:
        seal_policy(place, lambda policy: policy["calibrations"].append(entry(mode="logit", min_votes=3)))
        assert load_bundle(place).policy().min_votes == 17

    def test_unknown_keys_are_ignored(self, place: Path) -> None:
        edit_manifest(place, lambda manifest: manifest.update(colour="blue"))
        seal_policy(place, lambda policy: policy.update(comment="é"))
        load_bundle(place)

    def test_hidden_files_and_a_linked_directory_are_fine(self, place: Path, tmp_path: Path) -> None:
        (place / ".DS_Store").write_bytes(b"x")
        (tmp_path / "link").symlink_to(place, target_is_directory=True)
        (place / "real.onnx").symlink_to("encoder.onnx")  # unlisted, so:
        with pytest.raises(BundleError, match="not listed"):
            load_bundle(tmp_path / "link")
        (place / "real.onnx").unlink()
        load_bundle(tmp_path / "link")

    def test_a_link_that_stays_inside_is_fine(self, place: Path) -> None:
        (place / "encoder.onnx").rename(place / ".encoder")
        (place / "encoder.onnx").symlink_to(".encoder")
        load_bundle(place)


class TestCanonicalJson:
    def test_the_example_of_the_specification(self) -> None:
        specification = Path(__file__).parents[2] / "docs" / "bundle-format.md"
        canonical = canonical_json({"b": [1, 2.0], "a": "é"})
        assert canonical.decode() == '{"a":"é","b":[1,2.0]}'
        assert hashlib.sha256(canonical).hexdigest() in specification.read_text(encoding="utf-8")

    def test_numbers_and_escapes(self) -> None:
        value = {"é": 1e-05, "a": [0.0001, 1e16, 123456789012345.0, -0.0, True, None, '"\\\n\x01\x7f/']}
        expected = '{"a":[0.0001,1e+16,123456789012345.0,-0.0,true,null,"\\"\\\\\\n\\u0001\x7f/"],"é":1e-05}'
        assert canonical_json(value).decode() == expected


class TestWrite:
    def test_needs_overwrite(self, place: Path, tiny: Any) -> None:
        before = sha256_file(place / "manifest.json")
        with pytest.raises(OutputError, match="exists already"):
            write_tiny(place, tiny, manifest={"name": "second"})
        assert sha256_file(place / "manifest.json") == before
        assert write_tiny(place, tiny, manifest={"name": "second"}, overwrite=True).manifest["name"] == "second"
        assert os.listdir(place.parent) == [place.name]

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"manifest": {"class_names": ["a"] * 5}}, "more than once"),
            ({"manifest": {"opset": object()}}, "cannot be written as JSON"),
            ({"manifest": {"checkpoint": {"sha256": "0" * 64, "origin": float("nan")}}}, "cannot be written as JSON"),
            ({"manifest": {"data": {"long": "x" * (1 << 20)}}}, "larger than 1 MiB"),
            ({"policy": {"num_samples": 0}}, "num_samples"),
            ({"policy": {"calibrations": [entry(min_votes=41)]}}, "min_votes"),
            ({"files": {"../escape": b"x"}}, "may not list"),
        ],
    )
    def test_an_impossible_bundle_replaces_nothing(self, place: Path, tiny: Any, changed: JSON, message: str) -> None:
        before = load_bundle(place)
        with pytest.raises(BundleError, match=message):
            write_tiny(place, tiny, overwrite=True, **changed)
        assert load_bundle(place) == before
        assert os.listdir(place.parent) == [place.name]

    def test_an_interrupt_leaves_nothing(self, tmp_path: Path, tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupt(path: Path) -> Bundle:
            raise KeyboardInterrupt

        monkeypatch.setattr(bundle_module, "load_bundle", interrupt)
        with pytest.raises(KeyboardInterrupt):
            write_tiny(tmp_path / "b", tiny)
        assert os.listdir(tmp_path) == []

    def test_created_defaults_to_now(self, tmp_path: Path, tiny: Any) -> None:
        fields = manifest_fields(tiny)
        del fields["created"]
        files: dict[str, bytes | Path] = {"encoder.onnx": b"e", "head.onnx": b"h", "golden.npz": npz({})}
        bundle = write_bundle(tmp_path / "b", fields, {"num_samples": 1, "noise_scale": 0}, files)
        assert bundle.manifest["created"].endswith("Z")
        assert bundle.calibrations == ()


class TestStore:
    def test_adds_and_replaces(self, place: Path) -> None:
        bundle = load_bundle(place)
        bundle = store_calibration(bundle, entry(num_samples=10, min_votes=4))
        assert bundle.policy(10).min_votes == 4 and bundle.policy().min_votes == 17
        bundle = store_calibration(bundle, entry(min_votes=20))
        assert bundle.policy(10).min_votes == 4 and bundle.policy().min_votes == 20
        assert len(bundle.calibrations) == 2
        assert bundle == load_bundle(place)

    def test_two_at_once_are_both_kept(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        bundle, checked = load_bundle(place), bundle_module.check_policy

        def check_slowly(policy: JSON, digest: str, version: int) -> None:
            checked(policy, digest, version)
            time.sleep(0.05)  # between reading and writing

        monkeypatch.setattr(bundle_module, "check_policy", check_slowly)
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda count: store_calibration(bundle, entry(num_samples=count, min_votes=1)), (10, 11, 12)))
        assert {found["num_samples"] for found in load_bundle(place).calibrations} >= {10, 11, 12}

    def test_keeps_keys_it_does_not_know(self, place: Path) -> None:
        seal_policy(place, lambda policy: policy.update(comment="keep"))
        store_calibration(load_bundle(place), entry(min_votes=20))
        assert json.loads((place / "policy.json").read_text())["comment"] == "keep"

    def test_refuses_an_impossible_entry(self, place: Path) -> None:
        bundle = load_bundle(place)
        with pytest.raises(BundleError, match="from 0 to 40"):
            store_calibration(bundle, entry(min_votes=41))
        with pytest.raises(BundleError, match="cannot be written"):
            store_calibration(bundle, entry(coverage=float("nan")))
        assert load_bundle(place) == bundle

    def test_refuses_when_the_bundle_was_replaced(self, place: Path, tiny: Any) -> None:
        bundle = load_bundle(place)
        write_tiny(place, tiny, manifest={"name": "newer"}, overwrite=True)
        with pytest.raises(BundleError, match="another bundle"):
            store_calibration(bundle, entry())


class TestFind:
    def test_the_only_one(self, place: Path) -> None:
        (place.parent / "images").mkdir()
        (place.parent / ".old.bundle").mkdir()
        assert find_bundle(place.parent) == place
        assert find_bundle(place) == place
        place.rename(place.with_name("renamed"))
        assert find_bundle(place.parent).name == "renamed"

    def test_none_or_several(self, place: Path, tmp_path: Path) -> None:
        shutil.copytree(place, tmp_path / "second.bundle")
        with pytest.raises(UsageError, match=r"second.bundle, .*tiny.bundle"):
            find_bundle(tmp_path)
        empty = tmp_path / "empty"
        empty.mkdir()
        with pytest.raises(UsageError, match="no bundle in"):
            find_bundle(empty)
        (empty / "model.pt").write_bytes(b"x")
        with pytest.raises(UsageError, match=r"model\.pt") as caught:
            find_bundle(empty)
        assert caught.value.fix.endswith(f"flss-edge export {empty / 'model.pt'}")
        with pytest.raises(UsageError, match="cannot be searched"):
            find_bundle(tmp_path / "nowhere")
