"""Mistakes about bundles and checkpoints."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from flss_runtime.manifest import policy_digest

from .world import Arguments, Case, World, truncated


def altered_byte(world: World) -> Arguments:
    path = world.bundle / "encoder.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return ["verify", world.bundle]


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
