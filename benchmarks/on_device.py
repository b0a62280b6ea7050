"""One result from one device: what it is, which engines work, whether they decide the same, and how fast they are.

    python benchmarks/on_device.py c10.bundle -o result.json

For a Jetson, a workstation with an old GPU, or any other machine, to be sent in. It needs flss-edge with its engines,
and no torch; without a bundle it exports the checkpoint of this repository, and that needs torch. Every engine that
works here meets every precision of the bundle: prepare (TensorRT only), verify, bench. Failures are part of it.
That checkpoint is measured in fp32 and fp16: the images beside it are too few for int8. Name a bundle to have it.

The file names the board, the versions and the clocks, and no host, user or folder.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from command_line import command_of

from flss_runtime.atomic import atomic_write, refuse_existing
from flss_runtime.bundle import Bundle, load_bundle
from flss_runtime.errors import FLSSError

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINT = ROOT / "models/cifar10-w8.pt"
IMAGES = ROOT / "examples/cifar10/test"
PRECISIONS = ("fp32", "fp16", "int8")
SHIPPED_PRECISIONS = ("fp32", "fp16")
SCHEMA_VERSION = 1
MINUTES = {"quick": 1, "standard": 5}  # about what one engine takes in one precision
COLUMNS = (
    "engine",
    "precision",
    "computes in",
    "verdict",
    "class flips",
    "rejection flips",
    "p50 ms",
    "p99 ms",
    "of N",
)


def main() -> int:
    """Run everything and write the result; exit 1 if no engine could be measured."""
    options = parse()
    output = options.output
    try:
        if output is not None:
            refuse_existing(output, options.overwrite)
        with tempfile.TemporaryDirectory() as folder:
            found = measure(options, Path(folder))
        text = json.dumps(found, indent=2, allow_nan=False) + "\n"
        if output is None:
            print(text, end="")
        else:
            with atomic_write(output, overwrite=options.overwrite) as temporary:
                temporary.write_text(text, encoding="utf-8")
    except FLSSError as error:
        say(f"error: {error.problem}\n  fix: {error.fix}")
        return error.exit_code
    say("", *table(found["runs"]), f"wrote {output}" if output else "")
    return 0 if any(run["bench"].get("results") for run in found["runs"]) else 1


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Measure every engine of this device and write one JSON to send in.")
    parser.add_argument(
        "bundle", type=Path, nargs="?", help="bundle; by default this repository's checkpoint, exported"
    )
    parser.add_argument("-o", "--output", type=Path, help="result file; by default standard output")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing result")
    parser.add_argument("--data", type=Path, help="labelled images for the gate, beside the bundle's own")
    parser.add_argument("--engines", help="only these, such as ort,trt; by default all that work here")
    parser.add_argument("--precisions", help="only these, such as fp32,int8; by default all that the bundle has")
    parser.add_argument("--profile", choices=sorted(MINUTES), default="standard", help="of the bench")
    return parser.parse_args()


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Look at the device, then try every engine in every precision.

    Args:
        options: the command line.
        folder: for what is only needed on the way.
    """
    path = options.bundle or export_shipped(folder)
    bundle = load_bundle(path)
    scrub = Scrubber(path, options.data)
    device = flss_edge(["doctor", "--json"], scrub)
    if not device.get("results"):
        raise FLSSError(f"doctor failed: {device['error']}", "run flss-edge doctor")
    device["results"]["caches"].pop("root", None)  # may be anywhere
    engines = chosen(options.engines, [row["engine"] for row in device["results"]["engines"] if row["usable"]])
    precisions = chosen(options.precisions, list(precisions_of(bundle)))
    pairs = [(engine, precision) for engine in engines for precision in precisions]
    say(f"{len(pairs)} runs, about {MINUTES[options.profile]} minutes each: do not use the machine meanwhile")
    runs = [try_one(engine, precision, path, options, scrub) for engine, precision in pairs]
    after = flss_edge(["doctor", "--json"], scrub)
    return {
        "schema_version": SCHEMA_VERSION,
        "command": command_of("on_device.py", options).replace("--bundle ", ""),  # it has no option's name
        "bundle": {"name": bundle.manifest["name"], "digest": bundle.digest, "graphs": sizes_of(bundle)},
        "environment": device.pop("environment"),
        "doctor": device["results"],
        "runs": runs,
        "after": {key: (after.get("results") or {}).get(key) for key in ("devices", "clocks")},
    }


def export_shipped(folder: Path) -> Path:
    """Export the checkpoint of this repository; its sample images are too few to find int8's ranges on."""
    bundle = folder / "cifar10-w8.bundle"
    say(f"no bundle was named: exporting this repository's checkpoint in {' and '.join(SHIPPED_PRECISIONS)}")
    arguments = [
        "export",
        str(CHECKPOINT),
        "-o",
        str(bundle),
        "--data",
        str(IMAGES),
        "--precision",
        ",".join(SHIPPED_PRECISIONS),
    ]
    done = flss_edge(arguments, Scrubber(ROOT, None), as_json=False)
    if done["exit"]:
        fix = "name a bundle; where torch is: flss-edge export CHECKPOINT --data DATA --precision fp32,fp16,int8"
        raise FLSSError(f"the checkpoint could not be exported: {done['error']}", fix)
    return bundle


def precisions_of(bundle: Bundle) -> Iterator[str]:
    """Yield the precisions of the encoder, fp32 first."""
    have = {bundle.manifest["precision"][key] for key in bundle.manifest["graphs"] if key.split(".")[0] == "encoder"}
    yield from (precision for precision in PRECISIONS if precision in have)


def sizes_of(bundle: Bundle) -> dict[str, int]:
    """Return graph -> bytes of its file."""
    return {key: (bundle.path / file).stat().st_size for key, file in bundle.manifest["graphs"].items()}


def chosen(wanted: str | None, present: list[str]) -> list[str]:
    """Return what was asked for and is there, in the order it was asked for.

    Raises:
        FLSSError: nothing is left.
    """
    names = present if wanted is None else [name for name in wanted.split(",") if name in present]
    if not names:
        raise FLSSError(
            f"none of {wanted or 'these'} works here; there are: {', '.join(present) or 'none'}", "see doctor"
        )
    return names


def try_one(engine: str, precision: str, bundle: Path, options: argparse.Namespace, scrub: Scrubber) -> dict[str, Any]:
    """Prepare, verify and time one engine in one precision; each step is tried whatever became of the one before."""
    say(f"{engine} {precision}")
    common = [str(bundle), "--engine", engine, "--precision", precision, "--format", "json"]
    run: dict[str, Any] = {"engine": engine, "precision": precision}
    if engine == "trt":
        run["prepare"] = flss_edge(["prepare", *common], scrub)
    judge = ["verify", *common, "--no-strict"]  # an fp16 graph that runs in fp32 is a finding here, not an end
    run["verify"] = flss_edge(judge, scrub)
    if options.data is not None and (engine, precision) != ("ort", "fp32"):  # which the others are compared with
        run["verify_data"] = flss_edge([*judge, "--data", str(options.data)], scrub)
    timed = ["bench", *common, "--no-strict", "--profile", options.profile, "--allow-invalid"]
    run["bench"] = flss_edge(timed, scrub)
    for step in run.values():
        if isinstance(step, dict):
            step.pop("environment", None)  # the device's stands once, above
    return run


def flss_edge(arguments: list[str], scrub: Scrubber, *, as_json: bool = True) -> dict[str, Any]:
    """Run one command in a process of its own.

    Returns:
        "exit", "seconds", "error" (what it said on stderr when it failed), and of its JSON the results, validity, notes
        and environment.
    """
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "flss_edge", *arguments],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False,
    )  # fmt: skip
    found: dict[str, Any] = {"exit": done.returncode, "seconds": round(time.monotonic() - start, 1)}
    if done.returncode:
        found["error"] = scrub(" ".join(done.stderr[-2000:].split()))
    if as_json and done.stdout.strip():
        document = json.loads(scrub(done.stdout))
        found |= {key: document[key] for key in ("results", "validity", "notes", "environment") if key in document}
    return found


class Scrubber:
    """Takes folders out of what commands say: a result that is sent in must not tell where things lie.

    Args:
        *paths: files or folders that the commands were given.
    """

    def __init__(self, *paths: Path | None) -> None:
        folders = {path.absolute().parent for path in paths if path is not None}
        folders |= {folder.resolve() for folder in folders} | {
            Path.cwd(),
            ROOT,
            Path.home(),
            Path(tempfile.gettempdir()),
        }
        # The longest first: one may lie in another.
        self._folders = sorted((str(folder) for folder in folders if folder != Path("/")), key=len, reverse=True)

    def __call__(self, text: str) -> str:
        """Return the text without the folders."""
        for folder in self._folders:
            text = text.replace(f"{folder}/", "").replace(folder, ".")
        return text


def table(runs: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of a table for people."""
    yield "| " + " | ".join(COLUMNS) + " |"
    yield "|" + "---|" * len(COLUMNS)
    for run in runs:
        yield "| " + " | ".join(row_of(run)) + " |"


def row_of(run: dict[str, Any]) -> Iterator[str]:
    """Yield the cells of one run."""
    verified = (run.get("verify_data") or run["verify"]).get("results") or {}
    flips = {test["kind"]: f"{test['flips']} of {test['images']}" for test in verified.get("flips", ())}
    arms = (run["bench"].get("results") or {}).get("arms") or [{}]
    yield from (run["engine"], run["precision"])
    yield verified.get("facts", {}).get("precision", {}).get("encoder", "-")
    yield verified.get("verdict", f"exit {run['verify']['exit']}")
    yield from (flips.get(kind, "-") for kind in ("class", "rejection"))
    for key in ("p50", "p99"):
        value = arms[-1].get("latency_ms", {}).get(key)  # None: too few frames for this percentile
        yield "-" if value is None else f"{value:.3f}"
    yield str(arms[-1].get("num_samples", "-"))


def say(*lines: str) -> None:
    """Print progress on stderr: stdout belongs to the result."""
    print("\n".join(lines), file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
