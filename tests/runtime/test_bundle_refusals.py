"""Bundles that are spoilt, file by file and line by line, and what each is refused with."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flss_runtime.bundle import load_bundle
from flss_runtime.errors import (
    BundleError,
    FLSSError,
)

from .bundles import edit_manifest, seal_policy, write_tiny

JSON = dict[str, Any]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def outside(path: Path) -> None:
    target = path.parent.parent / "outside"
    path.rename(target)
    path.symlink_to(target)


def loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def rename_graph(name: str) -> Callable[[JSON], None]:
    def edit(manifest: JSON) -> None:
        manifest["files"][name] = manifest["files"].pop("encoder.onnx")
        manifest["graphs"]["encoder"] = name

    return edit


FILES: list[tuple[str, str, Callable[[Path], object], str]] = [
    ("no manifest", "manifest.json", Path.unlink, "has no manifest.json"),
    ("no policy", "policy.json", Path.unlink, "policy.json is missing"),
    ("no graph", "encoder.onnx", Path.unlink, "encoder.onnx is missing"),
    (
        "truncated graph",
        "encoder.onnx",
        truncate,
        r"encoder.onnx is truncated: expected sha256 \w{12}… .*found \w{12}…",
    ),
    ("altered graph", "head.onnx", flip, r"head.onnx was altered: expected sha256 \w{12}… .*found \w{12}…"),
    ("longer graph", "head.onnx", lambda p: p.write_bytes(p.read_bytes() + b"x"), "head.onnx was altered"),
    ("empty golden", "golden.npz", lambda p: p.write_bytes(b""), "golden.npz is truncated"),
    ("truncated manifest", "manifest.json", truncate, "manifest.json is not valid JSON"),
    ("empty manifest", "manifest.json", lambda p: p.write_bytes(b""), "empty file"),
    ("not JSON", "manifest.json", lambda p: p.write_bytes(b"\x89PNG\r\n"), "not valid JSON"),
    ("byte order mark", "manifest.json", lambda p: p.write_bytes(b"\xef\xbb\xbf{}"), "not valid JSON"),
    ("a list", "manifest.json", lambda p: p.write_text("[]"), "expected an object"),
    ("too large", "manifest.json", lambda p: p.write_text(" " * (1 << 20) + "{}"), "larger than 1 MiB"),
    ("deep", "manifest.json", lambda p: p.write_text("[" * 200_000), "not valid JSON"),
    ("huge number", "manifest.json", lambda p: p.write_text('{"a": 1e999}'), "not valid JSON"),
    ("huge integer", "manifest.json", lambda p: p.write_text('{"a": ' + "9" * 6000 + "}"), "not valid JSON"),
    ("NaN", "policy.json", lambda p: p.write_text('{"format_version": NaN}'), "NaN is not allowed"),
    ("twice", "policy.json", lambda p: p.write_text('{"a": 1, "a": 2}'), "twice"),
    ("half a surrogate", "policy.json", lambda p: p.write_text('{"a": "\\ud800"}'), "not valid JSON"),
    (
        "altered policy",
        "policy.json",
        lambda p: p.write_text(p.read_text().replace("17", "1")),
        "policy.json was altered",
    ),
    ("link outside", "encoder.onnx", outside, "link that leaves the bundle"),
    ("manifest outside", "manifest.json", outside, "link that leaves the bundle"),
    ("loop of links", "encoder.onnx", loop, "encoder.onnx cannot be read"),
    ("pipe", "encoder.onnx", pipe, "not a regular file"),
    ("unlisted", "extra.data", lambda p: p.write_bytes(b"x"), "'extra.data' is not listed"),
    ("directory", "more", Path.mkdir, "'more' is not listed"),
]

MANIFESTS: list[tuple[str, Callable[[JSON], object], str]] = [
    ("newer", lambda m: m.update(format_version=3), "version 3, newer than this flss-edge, which reads only 1 and 2"),
    ("zero", lambda m: m.update(format_version=0), "'format_version' must be a positive integer"),
    ("version as text", lambda m: m.update(format_version="1"), "positive integer; found str '1'"),
    ("version as bool", lambda m: m.update(format_version=True), "positive integer"),
    ("no version", lambda m: m.pop("format_version"), "found nothing"),
    ("no name", lambda m: m.pop("name"), "'name' must be"),
    ("escape in name", lambda m: m.update(name="\x1b[2J"), "'name' must be"),
    ("latent as text", lambda m: m.update(latent_dim="512"), "'latent_dim' must be an integer"),
    ("latent as float", lambda m: m.update(latent_dim=16.0), "'latent_dim' must be an integer"),
    ("latent zero", lambda m: m.update(latent_dim=0), "'latent_dim' must be an integer >= 1"),
    ("class count", lambda m: m.update(num_classes=4), "num_classes is 4, but class_names has 5"),
    ("one class", lambda m: m.update(num_classes=1, class_names=["a"]), "'num_classes' must be an integer >= 2"),
    ("same class twice", lambda m: m["class_names"].__setitem__(0, "class 1"), "'class 1' occurs more than once"),
    ("class without name", lambda m: m["class_names"].__setitem__(0, ""), "'class_names' must be"),
    ("class number", lambda m: m["class_names"].__setitem__(0, 3), "'class_names' must be"),
    ("names as text", lambda m: m.update(class_names="abcde"), "'class_names' must be an array"),
    ("no input", lambda m: m.pop("input"), "input"),
    ("input of another world", lambda m: m["input"].update(layout="HWC"), "input"),
    ("input of no size", lambda m: m["input"].update(height=0), "input"),
    ("no graphs", lambda m: m.pop("graphs"), "'graphs' must be an object"),
    ("no head", lambda m: m["graphs"].pop("head"), "'head' must be"),
    ("graph not listed", lambda m: m["graphs"].update(head="other.onnx"), "'other.onnx' of graph 'head' is not listed"),
    ("odd precision", lambda m: m["precision"].update(head="fp8"), "'head' must be one of fp32, fp16, int8"),
    ("no precision", lambda m: m["precision"].pop("head"), "'head' must be one of"),
    ("files as list", lambda m: m.update(files=[]), "'files' must be an object"),
    ("no golden", lambda m: m["files"].pop("golden.npz"), "golden.npz is not listed"),
    ("digest in capitals", lambda m: m["files"]["head.onnx"].update(sha256="A" * 64), "'sha256' must be"),
    ("negative size", lambda m: m["files"]["head.onnx"].update(size=-1), "'size' must be an integer >= 0"),
    ("case", lambda m: m["files"].update({"HEAD.onnx": m["files"]["head.onnx"]}), "differ only in letter case"),
    ("checkpoint digest", lambda m: m["checkpoint"].update(sha256="x"), "'sha256' must be"),
    *[
        (f"path {name!r}", rename_graph(name), "which a bundle may not list")
        for name in (
            "../encoder.onnx",
            "..",
            ".",
            "",
            "/etc/passwd",
            "a/b.onnx",
            "a\\b.onnx",
            "C:\\x.onnx",
            "a\0.onnx",
            "a\n.onnx",
            ".hidden",
            "a..onnx",
            "é.onnx",
            "x" * 129,
            "policy.json",
            "manifest.json",
        )
    ],
]

POLICIES: list[tuple[str, Callable[[JSON], object], str]] = [
    ("newer", lambda p: p.update(format_version=7), "policy.json has format version 7, newer"),
    ("no samples", lambda p: p.update(num_samples=0), "'num_samples' must be an integer >= 1"),
    ("negative scale", lambda p: p.update(noise_scale=-1), "'noise_scale' must be a finite number >= 0"),
    ("scale as text", lambda p: p.update(noise_scale="2"), "'noise_scale' must be"),
    ("scale beyond float", lambda p: p.update(noise_scale=10**400), "'noise_scale' must be"),
    (
        "too many votes",
        lambda p: p["calibrations"][0].update(min_votes=41),
        "'min_votes' must be an integer from 0 to 40",
    ),
    ("negative votes", lambda p: p["calibrations"][0].update(min_votes=-1), "'min_votes' must be"),
    ("no votes", lambda p: p["calibrations"][0].pop("min_votes"), "'min_votes' must be .* found nothing"),
    ("no mode", lambda p: p["calibrations"][0].pop("mode"), "'mode' must be"),
    ("twice", lambda p: p["calibrations"].append(p["calibrations"][0]), "two calibrations for num_samples 40"),
    ("not an object", lambda p: p["calibrations"].append(3), r"calibrations\[1\]: expected an object"),
    ("not a list", lambda p: p.update(calibrations={}), "'calibrations' must be an array"),
    (
        "no reference",
        lambda p: p["calibrations"][0].update(reference=[1]),
        r"calibrations\[0\]: 'reference' must be an object",
    ),
    (
        "reference of another N",
        lambda p: p["calibrations"][0].update(reference={"votes": [1], "gated": 0}),
        r"calibrations\[0\]: reference: 'votes' must be 41 integers",
    ),
]


class TestRefusals:
    @pytest.mark.parametrize(("name", "spoil", "message"), [row[1:] for row in FILES], ids=[row[0] for row in FILES])
    def test_files(self, place: Path, name: str, spoil: Callable[[Path], object], message: str) -> None:
        spoil(place / name)
        refused(place, message)

    @pytest.mark.parametrize(("edit", "message"), [row[1:] for row in MANIFESTS], ids=[row[0] for row in MANIFESTS])
    def test_manifests(self, place: Path, edit: Callable[[JSON], object], message: str) -> None:
        edit_manifest(place, edit)
        refused(place, message)

    @pytest.mark.parametrize(("edit", "message"), [row[1:] for row in POLICIES], ids=[row[0] for row in POLICIES])
    def test_policies(self, place: Path, edit: Callable[[JSON], object], message: str) -> None:
        seal_policy(place, edit)
        refused(place, message)

    def test_policy_of_another_bundle(self, place: Path, tiny: Any, tmp_path: Path) -> None:
        other = write_tiny(tmp_path / "other", tiny, manifest={"name": "other"})
        shutil.copy(other.path / "policy.json", place / "policy.json")
        refused(place, "belongs to another bundle")

    def test_what_is_no_directory(self, tmp_path: Path) -> None:
        (tmp_path / "model.pt").write_bytes(b"x")
        (tmp_path / "model.onnx").write_bytes(b"x")
        refused(tmp_path / "nothing", "does not exist")
        refused(Path("a\0b"), "does not exist")
        refused(tmp_path / "model.onnx", "is a file")
        assert "flss-edge export" in refused(tmp_path / "model.pt", "is a file").fix
        refused(tmp_path, "has no manifest.json")

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.data())
    def test_any_changed_byte_is_found(self, place: Path, data: st.DataObject) -> None:
        path = place / data.draw(st.sampled_from(sorted(os.listdir(place))))
        content = path.read_bytes()
        position = data.draw(st.integers(0, len(content) - 1))
        changed = bytes([content[position] ^ data.draw(st.integers(1, 255))])
        try:
            path.write_bytes(content[:position] + changed + content[position + 1 :])
            if path.name == "policy.json" and same_json(path.read_bytes(), content):
                load_bundle(place)  # white space is no content
            else:
                with pytest.raises(BundleError):
                    load_bundle(place)
        finally:
            path.write_bytes(content)


def same_json(one: bytes, other: bytes) -> bool:
    try:
        return bool(json.loads(one) == json.loads(other))
    except ValueError:
        return False


def refused(path: Path, message: str) -> FLSSError:
    with pytest.raises(BundleError, match=message) as caught:
        load_bundle(path)
    assert caught.value.fix and caught.value.exit_code == 3
    assert str(caught.value).isprintable() or "\n  fix: " in str(caught.value)
    assert "\x1b" not in str(caught.value) and "\0" not in str(caught.value)
    return caught.value
