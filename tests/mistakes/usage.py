"""Mistakes about commands, their options and their outputs."""

from __future__ import annotations

import shutil

from .world import Arguments, Case, World, calibrate, train


def two_bundles(world: World) -> Arguments:
    shutil.copytree(world.bundle, world.here / "second.bundle")
    return ["verify"]


def no_bundle(world: World) -> Arguments:
    shutil.rmtree(world.bundle)
    return ["bench", "--engine", "ort"]


USAGE = [
    Case("unknown command", 2, "Did you mean", lambda w: ["preditc"]),
    Case("unknown option", 2, "--engine", lambda w: ["bench", "--engin", "ort"]),
    Case("no bundle here", 2, "flss-edge export .*ckpt.pt", no_bundle),
    Case("several bundles here", 2, "several bundles.*m.bundle.*second.bundle", two_bundles),
    Case("N = 0", 2, "samples >= 1", lambda w: ["predict", w.bundle, w.picture, "-n", "0"]),
    Case("N below 0", 2, "samples >= 1", lambda w: ["bench", w.bundle, "-n", "-5"]),
    Case("N far too large", 2, "at most 1,000,000", lambda w: ["predict", w.bundle, w.picture, "-n", "9000000"]),
    Case("calibrate an N far too large", 2, "at most 1,000,000", calibrate(lambda w: w.pictures, "-n", "9000000")),
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
