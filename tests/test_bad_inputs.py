"""What users get wrong, in one table: the command, its exit code, and words of the message that name the remedy."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flss_runtime.bundle import load_bundle
from flss_runtime.decision import SmoothingPolicy, Status
from flss_runtime.errors import UsageError
from flss_runtime.manifest import policy_digest
from flss_runtime.opening import open_classifier

ENTRY = "import sys; from flss_edge.cli import main; sys.exit(main())"


@dataclass(frozen=True)
class World:
    """The folder a case runs in: a calibrated bundle, its checkpoint, labelled pictures, and whatever the case adds."""

    here: Path
    bundle: Path
    checkpoint: Path
    pictures: Path

    @property
    def picture(self) -> Path:
        return self.pictures / "cat" / "00.png"

    def write(self, name: str, content: bytes | str = b"") -> Path:
        path = self.here / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def folder(self, name: str) -> Path:
        (self.here / name).mkdir(parents=True)
        return self.here / name

    def image(self, name: str, mode: str = "RGB", size: tuple[int, int] = (32, 32), **options: Any) -> Path:
        shape = (*size[::-1], len(mode)) if len(mode) > 1 else size[::-1]
        pixels = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
        Image.fromarray(pixels, mode=None).convert(mode).save(self.here / name, **options)
        return self.here / name

    def npz(self, **changes: Any) -> Path:
        arrays = {
            "test_images": np.zeros((30, 32, 32, 3), np.uint8),
            "test_labels": np.arange(30) % 3,
        }
        arrays = {name: array for name, array in {**arrays, **changes}.items() if array is not None}
        np.savez(self.here / "set.npz", **arrays)
        return self.here / "set.npz"

    def edit(self, file: str, change: Callable[[dict[str, Any]], object]) -> Path:
        """Change one JSON file of the bundle and make every digest agree again."""
        values = json.loads((self.bundle / file).read_text())
        change(values)
        (self.bundle / file).write_text(json.dumps(values))
        policy = json.loads((self.bundle / "policy.json").read_text())
        policy["manifest_sha256"] = hashlib.sha256((self.bundle / "manifest.json").read_bytes()).hexdigest()
        policy["sha256"] = policy_digest(policy)
        (self.bundle / "policy.json").write_text(json.dumps(policy))
        return self.bundle

    def replace(self, file: str, content: bytes) -> Path:
        """Replace a file of the bundle and its line in the manifest: only its content is wrong."""
        (self.bundle / file).write_bytes(content)
        entry = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
        return self.edit("manifest.json", lambda manifest: manifest["files"].update({file: entry}))


Arguments = Sequence[object]


@dataclass(frozen=True)
class Case:
    """One mistake.

    Attributes:
        name: the test's id.
        code: the exit code of the command line.
        says: regular expression that the message, on stderr or in the picture's row, must match.
        make: prepares the world and returns the command.
    """

    name: str
    code: int
    says: str
    make: Callable[[World], Arguments]


def altered_byte(world: World) -> Arguments:
    path = world.bundle / "encoder.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return ["verify", world.bundle]


def truncated(path: Path, keep: float = 0.5) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    return path


def without(path: Path, result: Path) -> Path:
    path.unlink()
    return result


def linked_outside(world: World) -> Arguments:
    outside = world.here / "outside.onnx"
    shutil.move(world.bundle / "encoder.onnx", outside)
    (world.bundle / "encoder.onnx").symlink_to(outside)
    return ["inspect", world.bundle]


def swapped_graphs(world: World) -> Arguments:
    def swap(manifest: dict[str, Any]) -> None:
        graphs = manifest["graphs"]
        graphs["encoder"], graphs["head"] = graphs["head"], graphs["encoder"]

    return ["verify", world.edit("manifest.json", swap)]


def foreign_policy(world: World) -> Arguments:
    path = world.bundle / "policy.json"
    policy = json.loads(path.read_text())
    policy["manifest_sha256"] = "0" * 64
    policy["sha256"] = policy_digest(policy)
    path.write_text(json.dumps(policy))
    return ["inspect", world.bundle]


def edited_threshold(world: World) -> Arguments:
    path = world.bundle / "policy.json"
    path.write_text(re.sub(r'"min_votes": *\d+', '"min_votes": 1', path.read_text()))
    return ["predict", world.bundle, world.picture]


def listed_as(name: str) -> Callable[[World], Arguments]:
    """Let the manifest name the encoder's file by a path."""

    def change(manifest: dict[str, Any]) -> None:
        manifest["files"][name] = manifest["files"].pop("encoder.onnx")
        manifest["graphs"]["encoder"] = name

    return lambda world: ["inspect", world.edit("manifest.json", change)]


def min_votes_above(policy: dict[str, Any]) -> None:
    policy["calibrations"][0]["min_votes"] = policy["calibrations"][0]["num_samples"] + 1


def golden_with_pickle(world: World) -> Arguments:
    stream = io.BytesIO()
    np.savez(stream, images=np.array([{"a": 1}], dtype=object))
    return ["verify", world.replace("golden.npz", stream.getvalue())]


def two_bundles(world: World) -> Arguments:
    shutil.copytree(world.bundle, world.here / "second.bundle")
    return ["verify"]


def no_bundle(world: World) -> Arguments:
    shutil.rmtree(world.bundle)
    return ["bench", "--engine", "ort"]


class Payload:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch unpickled",)


def pickled_code(world: World) -> Arguments:
    return ["export", world.write("code.pt", pickle.dumps(Payload()))]


def state_dict(change: Callable[[dict[str, Any]], object]) -> Callable[[World], Arguments]:
    """A released-layout checkpoint with one mistake."""

    def make(world: World) -> Arguments:
        import torch

        state = {"module.encode.conv1.weight": torch.zeros(4, 3, 3, 3), "module.fc1_encoder.weight": torch.zeros(3, 32)}
        change(state)
        torch.save(state, world.here / "released.pt")
        return ["export", world.here / "released.pt"]

    return make


def picture(make: Callable[[World], object]) -> Callable[[World], Arguments]:
    """Predict one picture; JSON rows are never folded, so the reason can be searched."""

    def arguments(world: World) -> Arguments:
        make(world)
        (made,) = [path for path in world.here.iterdir() if path not in (world.bundle, world.checkpoint)] or [
            "none.png"
        ]
        return ["predict", world.bundle, made, "--format", "json"]

    return arguments


def png_of_declared_size(width: int, height: int) -> bytes:
    """The head of a picture that claims more pixels than it has."""
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def calibrate(make: Callable[[World], object], *more: str) -> Callable[[World], Arguments]:
    return lambda world: ["calibrate", world.bundle, "--data", make(world), "--split", "test", *more]


def train(*more: object) -> Callable[[World], Arguments]:
    common = ("--image-size", 32, "--width", 8, "--epochs", 1, "-o", "run")
    return lambda world: ["train", "--data", world.pictures, *common, *more]


def train_npz(world: World) -> Path:
    return world.npz(train_images=np.zeros((90, 32, 32, 3), np.uint8), train_labels=np.arange(90) % 3)


def nan_images() -> Any:
    return np.full((30, 32, 32, 3), np.nan, np.float32)


AGAIN = "copy the bundle again.*flss-edge export"
BUNDLES = [
    Case("missing bundle", 3, "does not exist.*flss-edge export", lambda w: ["inspect", "none.bundle"]),
    Case("file as bundle", 3, "a bundle is a folder", lambda w: ["verify", w.write("file.bundle")]),
    Case("checkpoint as bundle", 3, "flss-edge export .*ckpt.pt", lambda w: ["verify", w.checkpoint]),
    Case("folder as bundle", 3, "manifest.json", lambda w: ["verify", w.folder("plain")]),
    Case("missing manifest", 3, "manifest.json", lambda w: ["verify", without(w.bundle / "manifest.json", w.bundle)]),
    Case("missing policy", 3, AGAIN, lambda w: ["verify", without(w.bundle / "policy.json", w.bundle)]),
    Case("missing graph", 3, "head.onnx.*" + AGAIN, lambda w: ["verify", without(w.bundle / "head.onnx", w.bundle)]),
    Case(
        "truncated graph",
        3,
        "encoder.onnx is truncated.*" + AGAIN,
        lambda w: ["verify", truncated(w.bundle / "encoder.onnx").parent],
    ),
    Case("altered graph", 3, "encoder.onnx was altered.*" + AGAIN, altered_byte),
    Case("truncated manifest", 3, AGAIN, lambda w: ["verify", truncated(w.bundle / "manifest.json").parent]),
    Case("empty policy", 3, "policy.json.*fix:", lambda w: ["verify", truncated(w.bundle / "policy.json", 0).parent]),
    Case("edited threshold", 3, "policy.json was altered.*flss-edge calibrate", edited_threshold),
    Case("policy of another bundle", 3, "another bundle.*flss-edge calibrate", foreign_policy),
    Case(
        "newer format",
        3,
        "format version 99.*upgrade flss-edge",
        lambda w: ["verify", w.edit("manifest.json", lambda m: m.update(format_version=99))],
    ),
    Case(
        "no format version",
        3,
        "format_version.*fix:",
        lambda w: ["verify", w.edit("manifest.json", lambda m: m.pop("format_version"))],
    ),
    Case("path out of the bundle", 3, "plain file names", listed_as("../encoder.onnx")),
    Case("absolute path", 3, "plain file names", listed_as("/encoder.onnx")),
    Case("path into a folder", 3, "plain file names", listed_as("sub/encoder.onnx")),
    Case("link out of the bundle", 3, "leaves the bundle.*copy the file", linked_outside),
    Case(
        "unlisted file",
        3,
        "not listed.*move it out",
        lambda w: ["verify", w.write("m.bundle/weights.bin", b"x").parent],
    ),
    Case("min_votes above N", 3, "min_votes.*fix:", lambda w: ["verify", w.edit("policy.json", min_votes_above)]),
    Case(
        "class twice",
        3,
        "occurs more than once.*export again",
        lambda w: ["verify", w.edit("manifest.json", lambda m: m.update(class_names=["cat", "cat", "fox"]))],
    ),
    Case("encoder and head swapped", 3, "export the bundle again", swapped_graphs),
    Case(
        "graph that is no ONNX",
        3,
        "head.onnx.*export the bundle again",
        lambda w: ["verify", w.replace("head.onnx", b"not a graph")],
    ),
    Case("golden data that is no archive", 3, AGAIN, lambda w: ["verify", w.replace("golden.npz", b"PK\3\4rubbish")]),
    Case("golden data that would run code", 3, AGAIN, golden_with_pickle),
    Case(
        "no threshold for this N",
        3,
        "flss-edge calibrate .* -n 7",
        lambda w: ["predict", w.bundle, w.picture, "-n", "7"],
    ),
]
CHECKPOINTS = [
    Case("missing checkpoint", 3, "does not exist", lambda w: ["export", "none.pt"]),
    Case("checkpoint of another kind", 3, r"\.safetensors", lambda w: ["export", w.write("model.onnx")]),
    Case("truncated checkpoint", 3, "truncated", lambda w: ["export", truncated(w.checkpoint), "-o", "new.bundle"]),
    Case("empty checkpoint", 3, "copy it again", lambda w: ["inspect", w.write("empty.pt")]),
    Case("text as checkpoint", 3, "copy it again", lambda w: ["export", w.write("text.pt", "hello")]),
    Case("checkpoint with code", 3, "save its plain state_dict", pickled_code),
    Case("rubbish as safetensors", 3, "copy it again", lambda w: ["inspect", w.write("m.safetensors", b"\xff" * 64)]),
    Case("state dict with missing keys", 3, "fix:", state_dict(lambda state: state.pop("module.fc1_encoder.weight"))),
    Case("dictionary of other things", 3, "state_dict", state_dict(lambda state: state.update(epoch=3))),
]
USAGE = [
    Case("unknown command", 2, "Did you mean", lambda w: ["preditc"]),
    Case("unknown option", 2, "--engine", lambda w: ["bench", "--engin", "ort"]),
    Case("no bundle here", 2, "flss-edge export .*ckpt.pt", no_bundle),
    Case("several bundles here", 2, "several bundles.*m.bundle.*second.bundle", two_bundles),
    Case("N = 0", 2, "samples >= 1", lambda w: ["predict", w.bundle, w.picture, "-n", "0"]),
    Case("N below 0", 2, "number >= 1", lambda w: ["bench", w.bundle, "-n", "-5"]),
    Case("N that is no number", 2, "valid int", lambda w: ["predict", w.bundle, w.picture, "-n", "many"]),
    Case("no threads", 2, "x>=1|greater than or equal to 1", lambda w: ["verify", w.bundle, "--threads", "0"]),
    Case("unknown engine", 2, "choose one of: ort", lambda w: ["verify", w.bundle, "--engine", "onnx"]),
    Case(
        "unknown device of ort",
        2,
        "choose one of: ort, ort:cuda",
        lambda w: ["verify", w.bundle, "--engine", "ort:tpu"],
    ),
    Case(
        "absent device",
        6,
        "no TensorrtExecutionProvider",
        lambda w: ["bench", w.bundle, "--engine", "ort:tensorrt"],
    ),
    Case("unknown format", 2, "'table', 'json', 'csv', 'md'", lambda w: ["doctor", "--format", "xml"]),
    Case("output without a format", 2, "add --format", lambda w: ["doctor", "-o", "result"]),
    Case("no pictures", 2, "PICTURE_OR_FOLDER", lambda w: ["predict", w.bundle]),
    Case(
        "seed and key",
        2,
        "drop --record-key",
        lambda w: ["predict", w.bundle, w.picture, "--seed", "1", "--record-key", "key"],
    ),
    Case("budget of 0", 2, "--budget 0.10", calibrate(lambda w: w.pictures, "--budget", "0")),
    Case("budget above 1", 2, "--budget 0.10", calibrate(lambda w: w.pictures, "--budget", "10")),
    Case("budget that is NaN", 2, "--budget 0.10", calibrate(lambda w: w.pictures, "--budget", "nan")),
    Case("calibrate on nothing", 2, "--data DATA", lambda w: ["calibrate", w.bundle]),
    Case("unknown split", 2, "calibration", lambda w: ["calibrate", "--data", w.pictures, "--split", "dev"]),
    Case("unknown profile", 2, "quick, standard", lambda w: ["bench", w.bundle, "--profile", "fast"]),
    Case("no percentage", 2, "--assert-overhead 2%", lambda w: ["bench", w.bundle, "--assert-overhead", "low"]),
    Case(
        "radius in grey levels",
        2,
        "8/255",
        lambda w: ["evaluate", w.checkpoint, "--data", w.pictures, "--epsilon", "8"],
    ),
    Case("data without checkpoint", 2, "give both", lambda w: ["verify", w.bundle, "--data", w.pictures]),
    Case("unknown recipe", 2, "official", train("--recipe", "fast")),
    Case("unknown setting", 2, "key=value", train("--set", "learning_rate=1")),
    Case("setting of the wrong type", 2, "peak_lr", train("--set", "peak_lr=high")),
    Case("no epochs", 2, "at least 1", train("--epochs", "0")),
    Case("unknown device", 2, "choose cpu", train("--device", "gpu")),
    Case("unknown stem", 2, "cifar, imagenet", train("--stem", "vgg")),
    Case("unknown activation", 2, "relu, silu", train("--activation", "gelu")),
    Case("unknown precision", 2, "fp32, tf32, bf16", train("--precision", "int8")),
    Case("tf32 without a GPU", 2, "precision of GPUs", train("--precision", "tf32", "--device", "cpu")),
    Case("blocks that are no numbers", 2, "2,2,2,2", train("--blocks", "two")),
    Case("parts too small to normalise", 2, "smaller --accumulate", train("--accumulate", 32)),
    Case("latent space of a plain classifier", 2, "Leave out", train("--recipe", "trades", "--latent-dim", 8)),
    Case("setting of another recipe", 2, "key=value", train("--recipe", "trades", "--set", "view_weight=1")),
    Case("no data to train on", 2, "give --data", lambda w: ["train"]),
]
PICTURES = [
    Case("missing picture", 7, "correct the path", picture(lambda w: None)),
    Case("zero-byte picture", 7, "copy or record it again", picture(lambda w: w.write("a.png"))),
    Case(
        "corrupt picture",
        7,
        "copy or record it again",
        picture(lambda w: w.write("a.png", b"\x89PNG\r\n\x1a\n" + b"x" * 99)),
    ),
    Case("truncated png", 7, "copy or record it again", picture(lambda w: truncated(w.image("a.png")))),
    Case("truncated jpeg", 7, "copy or record it again", picture(lambda w: truncated(w.image("a.jpg", size=(90, 90))))),
    Case("pipe as picture", 7, "save the picture to a file", picture(lambda w: os.mkfifo(w.here / "a.png"))),
    Case("text as picture", 7, "convert it to PNG or JPEG", picture(lambda w: w.write("a.png", "hello"))),
    Case("transparent picture", 7, "flatten it onto a background", picture(lambda w: w.image("a.png", "RGBA"))),
    Case("grey with transparency", 7, "flatten it onto a background", picture(lambda w: w.image("a.png", "LA"))),
    Case("32-bit picture", 7, "convert it to 8 or 16 bits", picture(lambda w: w.image("a.tif", "F"))),
    Case(
        "decompression bomb",
        7,
        "scale it down first",
        picture(lambda w: w.write("a.png", png_of_declared_size(60000, 60000))),
    ),
    Case("empty folder", 7, "holds no picture.*name the files", lambda w: ["predict", w.bundle, w.folder("none")]),
]
DATA = [
    Case(
        "image size other than the npz has",
        2,
        "drop --image-size",
        lambda w: ["train", "--data", train_npz(w), "--image-size", 64, "--width", 8, "-o", "run"],
    ),
    Case("missing data", 7, "does not exist", calibrate(lambda w: "nowhere")),
    Case("data folder without classes", 7, "folder of its name", calibrate(lambda w: w.folder("flat"))),
    Case("class without pictures", 7, "Add pictures", calibrate(lambda w: w.folder("flat/cat").parent)),
    Case("class the bundle does not know", 7, "cat, dog, fox", calibrate(lambda w: other_class(w))),
    Case("rubbish as npz", 7, "numpy.savez", calibrate(lambda w: w.write("set.npz", "hello"))),
    Case("npz without labels", 7, "test_labels", calibrate(lambda w: w.npz(test_labels=None))),
    Case("images with NaN", 7, "8-bit", calibrate(lambda w: w.npz(test_images=nan_images()))),
    Case(
        "grey images in npz", 7, "channels last", calibrate(lambda w: w.npz(test_images=np.zeros((30, 32, 32), "u1")))
    ),
    Case("fractional labels", 7, "whole-number label", calibrate(lambda w: w.npz(test_labels=np.zeros(30)))),
    Case("too few labels", 7, "whole-number label", calibrate(lambda w: w.npz(test_labels=np.zeros(3, int)))),
    Case("negative label", 7, "from 0", calibrate(lambda w: w.npz(test_labels=np.arange(30) - 1))),
    Case("label above the classes", 7, "cat, dog, fox", calibrate(lambda w: w.npz(test_labels=np.arange(30)))),
    Case("images of another size", 7, "resize", calibrate(lambda w: w.npz(test_images=np.zeros((30, 8, 8, 3), "u1")))),
    Case(
        "no images",
        7,
        "at least one image",
        calibrate(lambda w: w.npz(test_images=np.zeros((0, 32, 32, 3), "u1"), test_labels=np.zeros(0, int))),
    ),
    Case("too few images for the budget", 7, "at least 200", calibrate(lambda w: w.pictures, "--budget", "0.005")),
    Case("folder without a size", 2, "--image-size", lambda w: ["train", "--data", w.pictures, "-o", "run"]),
]
OUTPUTS = [
    Case("existing result", 7, "--overwrite", lambda w: ["doctor", "-o", w.write("result.json")]),
    Case("existing bundle", 7, "--overwrite", lambda w: ["export", w.checkpoint, "-o", w.bundle]),
    Case(
        "folder of other things",
        7,
        "remove that directory yourself",
        lambda w: ["export", w.checkpoint, "-o", w.write(w.folder("mine").name + "/letter.txt").parent, "--overwrite"],
    ),
    Case("file as parent", 7, "mkdir|folder", lambda w: ["doctor", "-o", w.write("file") / "result.json"]),
    Case(
        "file as parent of a bundle", 7, "fix:", lambda w: ["export", w.checkpoint, "-o", w.write("file") / "b.bundle"]
    ),
    Case("missing parent", 7, "mkdir -p", lambda w: ["doctor", "-o", w.here / "no" / "result.json"]),
    Case(
        "device as output",
        7,
        "choose another",
        lambda w: ["doctor", "-o", "/dev/full", "--format", "json", "--overwrite"],
    ),
    Case(
        "existing key",
        7,
        "choose another",
        lambda w: ["predict", w.bundle, w.picture, "--record-key", w.write("key")],
    ),
    Case("device that cannot train", 2, "choose cpu, cuda", train("--device", "meta")),
    Case("run folder of other things", 7, "another folder", train("-o", "m.bundle")),
]
CASES = [*BUNDLES, *CHECKPOINTS, *USAGE, *PICTURES, *DATA, *OUTPUTS]


def other_class(world: World) -> Path:
    shutil.copytree(world.pictures / "cat", world.folder("set") / "wolf")
    return world.here / "set"


@pytest.fixture
def world(
    tmp_path: Path,
    calibrated_bundle: Path,
    tiny_checkpoint: Path,
    labelled_pictures: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> World:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(calibrated_bundle, tmp_path / "m.bundle")
    shutil.copy(tiny_checkpoint, tmp_path / "ckpt.pt")
    return World(tmp_path, tmp_path / "m.bundle", tmp_path / "ckpt.pt", labelled_pictures)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_mistake_ends_with_its_code_and_a_remedy(case: Case, world: World, run: Callable[..., Any]) -> None:
    arguments = case.make(world)
    before = snapshot(world.here)
    result = run(*arguments)
    told = " ".join((result.err + result.out).split())
    assert result.code == case.code, told
    assert re.search(case.says, told), told
    assert "Traceback" not in told
    assert snapshot(world.here) == before  # a mistake changes and leaves nothing


def test_the_table_is_long_enough_and_names_are_unique() -> None:
    assert len(CASES) >= 30
    assert len({case.name for case in CASES}) == len(CASES)


GOOD = np.zeros((32, 32, 3), np.uint8)


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (np.full((3, 32, 32), np.nan, np.float32), "NaN"),
        (np.full((3, 32, 32), np.inf, np.float32), "infinity"),
        (np.full((3, 32, 32), 255, np.float32), "divide 8-bit values by 255"),
        (np.zeros((3, 32, 32), np.float64), "expected uint8"),
        (np.zeros((32, 32, 3), np.int16), "expected uint8"),
        (np.zeros((32, 32, 3), np.float32), r"expected \(3, 32, 32\)"),
        (np.zeros((16, 16, 3), np.uint8), r"expected \(32, 32, 3\)"),
        (np.zeros((32, 32, 4), np.uint8), r"expected \(32, 32, 3\)"),
        (np.zeros((32, 32), np.uint8), r"expected \(32, 32, 3\)"),
        ("frame.png", "not a NumPy array"),
        (None, "not a NumPy array"),
    ],
    ids=repr,
)
def test_a_bad_image_of_a_batch_costs_the_others_nothing(image: object, says: str, calibrated_bundle: Path) -> None:
    with open_classifier(load_bundle(calibrated_bundle)) as classifier:
        first, bad, last = classifier.classify([GOOD, image, GOOD])
    assert bad.status is Status.INVALID_INPUT and bad.label is None
    assert re.search(says, bad.reason), bad.reason
    assert first.votes > 0 and last.votes > 0


@pytest.mark.parametrize(
    "policy", [(0, 2.0, 0), (-1, 2.0, 0), (10, 2.0, 11), (10, 2.0, -1), (10, float("nan"), 0), (10, -1.0, 0)]
)
def test_an_impossible_policy_is_refused(policy: tuple[int, float, int]) -> None:
    with pytest.raises(UsageError, match="fix: pass"):
        SmoothingPolicy(*policy)


def grey16(path: Path) -> None:
    Image.fromarray(np.full((32, 32), 40_000, np.uint16)).save(path)


def rotated(path: Path) -> None:
    picture = Image.new("RGB", (32, 32))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(path, exif=exif)


@pytest.mark.parametrize(
    "save",
    [
        lambda path: Image.new("L", (32, 32), 90).save(path),
        lambda path: Image.new("RGBA", (32, 32), (9, 9, 9, 255)).save(path),
        lambda path: Image.new("P", (40, 20)).save(path),
        lambda path: Image.new("1", (32, 32)).save(path),
        grey16,
        rotated,
    ],
    ids=["grey", "opaque alpha", "palette of another size", "black and white", "16-bit grey", "EXIF-rotated"],
)
def test_an_odd_picture_is_answered(save: Callable[[Path], None], world: World, run: Callable[..., Any]) -> None:
    save(world.here / "odd.png")
    result = run("predict", world.bundle, "odd.png", "--format", "json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["results"][0]["status"] in ("accepted", "low_vote")


def small_disk() -> None:
    """Let no file grow above 64 KiB: what a full disk does to a writer, without needing one."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))


@pytest.mark.parametrize(
    "arguments",
    [
        ["export", "ckpt.pt", "-o", "new.bundle"],
        ["train", "--data", "PICTURES", "--image-size", "32", "--width", "8", "--epochs", "1", "-o", "run"],
    ],
    ids=["export", "train"],
)
def test_a_full_disk_leaves_nothing_half_written(arguments: list[str], world: World) -> None:
    given = [str(world.pictures) if argument == "PICTURES" else argument for argument in arguments]
    quick = ["--set", "attack_steps=1", "--set", "selection_steps=1"] if arguments[0] == "train" else []
    done = subprocess.run(
        [sys.executable, "-c", ENTRY, *given, *quick],
        preexec_fn=small_disk,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 7, done.stderr
    assert "fix:" in done.stderr and "Traceback" not in done.stderr
    assert not (world.here / "new.bundle").exists()
    left = [path.name for path in world.here.rglob("*") if path.is_file() and path.suffix in (".pt", ".onnx", ".npz")]
    assert sorted(left) == sorted(
        ["ckpt.pt", *(path.name for path in world.bundle.iterdir() if path.suffix != ".json")]
    )


def heed_sigint() -> None:
    """A shell's background jobs inherit an ignored SIGINT, and the commands respect that; these tests send one."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_ctrl_c_during_training_keeps_the_run(world: World) -> None:
    command = ["train", "--data", str(world.pictures), "--image-size", "32", "--width", "8", "--epochs", "500"]
    quick = ["-o", "run", "--set", "attack_steps=1", "--set", "selection_steps=1", "--set", "batch_size=16"]
    arguments = [sys.executable, "-c", ENTRY, *command, *quick]
    with subprocess.Popen(
        arguments, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=heed_sigint
    ) as process:
        assert process.stderr is not None
        while not (line := process.stderr.readline()).startswith("epoch 1"):
            assert line, "training ended before its first epoch"
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        told = process.stderr.read()
        assert process.wait(timeout=60) == 130
    assert "Traceback" not in told and told.rstrip().endswith("interrupted")
    assert not [path for path in (world.here / "run").iterdir() if path.name.startswith(".")]
    assert zipfile.is_zipfile(world.here / "run" / "state.pt")
