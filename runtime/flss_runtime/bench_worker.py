"""One process start of a benchmark: `python -m flss_runtime.bench_worker FOLDER` does what FOLDER/spec.json asks for.

Started by `flss_runtime.bench_process`, never by hand. Progress goes to stdout, one JSON object a line; when the reader
is gone the next line fails and ends the process, so a killed benchmark leaves nothing running.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flss_runtime import arms
from flss_runtime.arms import Arm, ImagePool
from flss_runtime.bundle import Bundle, load_bundle
from flss_runtime.errors import FLSSError
from flss_runtime.machine import Snapshot, peak_rss_mib
from flss_runtime.precision_check import check_precision

RESULT, TIMES, ERROR, SPEC = "result.json", "times.npz", "error.json", "spec.json"
_STABLE_WINDOWS, _STABLE_WITHIN = 3, 0.10
# The first frames after a change of arm find the other arm's weights in the caches; a robot runs one arm only.
_SETTLE_FRAMES = 3


@dataclass(frozen=True)
class Profile:
    """How long everything takes.

    Attributes:
        processes: process starts.
        blocks: palindromic blocks in each process.
        visit_s: shortest time of one visit to an arm, seconds.
        visit_frames: fewest timed frames of a visit.
        window_s: length of one warm-up window, seconds.
        warm_s: shortest and longest warm-up of an arm, seconds.
        warm_frames: fewest warm-up frames of an arm.
        alone_s: time of the baseline before the classifier exists, seconds.
        stage_frames: frames of the instrumented run.
    """

    name: str
    processes: int
    blocks: int
    visit_s: float
    visit_frames: int
    window_s: float
    warm_s: tuple[float, float]
    warm_frames: int
    alone_s: float
    stage_frames: int


PROFILES = {
    profile.name: profile
    for profile in (
        Profile("quick", 2, 8, 0.1, 3, 0.1, (0.4, 3.0), 25, 0.5, 100),
        Profile("standard", 3, 10, 1.0, 5, 0.5, (2.0, 30.0), 50, 5.0, 500),
    )
}


def palindrome(names: Sequence[str], block: int) -> list[str]:
    """Return the visits of one block: D, 1, 100, 100, 1, D, with the arms rotated from block to block.

    Each arm is visited twice, symmetrically, so a linear drift hits all alike; rotation gives every arm every place.
    """
    turn = block % len(names)
    forward = [*names[turn:], *names[:turn]]
    return [*forward, *reversed(forward)]


def visit(arm: Arm, pool: ImagePool, order: Sequence[int], start: int, seconds: float, frames: int) -> list[int]:
    """Run one arm for a while, each frame after the reply to the one before.

    Returns:
        Nanoseconds of each frame, at least `frames` of them.
    """
    clock, run, images, size = time.perf_counter_ns, arm.frame, pool.images, len(order)
    for index in range(_SETTLE_FRAMES):
        run(images[order[(start + index) % size]])
    taken: list[int] = []
    stop = clock() + int(seconds * 1e9)
    while True:
        image = images[order[(start + len(taken)) % size]]
        before = clock()
        run(image)
        after = clock()
        taken.append(after - before)
        if after >= stop and len(taken) >= frames:
            return taken


def is_stable(window_medians: Sequence[float]) -> bool:
    """Tell whether the last three windows lie within 10 % of each other."""
    last = window_medians[-_STABLE_WINDOWS:]
    return len(last) == _STABLE_WINDOWS and max(last) <= min(last) * (1 + _STABLE_WITHIN)


def warm_up(arm: Arm, pool: ImagePool, order: Sequence[int], profile: Profile) -> dict[str, Any]:
    """Run an arm until its windows agree, by time and by count, or until the longest warm-up is over.

    Returns:
        `frames`, `seconds`, `first_frame_ms`, `windows_ms` (medians) and `stable`.
    """
    began = time.perf_counter()
    arms.check_answer(arm.frame(pool.images[order[0]]))
    first_ms = (time.perf_counter() - began) * 1e3
    frames, windows = 1, list[float]()
    while True:
        taken = visit(arm, pool, order, frames, profile.window_s, _STABLE_WINDOWS)
        frames += len(taken) + _SETTLE_FRAMES
        windows.append(float(np.median(taken)) / 1e6)
        seconds = time.perf_counter() - began
        enough = seconds >= profile.warm_s[0] and frames >= profile.warm_frames
        if (stable := is_stable(windows) and enough) or (seconds >= profile.warm_s[1] and len(windows) > 2):
            break
    return {
        "arm": arm.name,
        "frames": frames,
        "seconds": seconds,
        "first_frame_ms": first_ms,
        "windows_ms": windows,
        "stable": stable,
    }


def run_blocks(
    opened: dict[str, Arm], pool: ImagePool, order: Sequence[int], profile: Profile, say: Callable[[str], None]
) -> dict[str, NDArray[np.int64]]:
    """Visit the arms block by block.

    Returns:
        Four arrays (n,), one entry a frame: `arm` (index in `opened`), `block`, `visit` (0 or 1 within the block)
        and `latency_ns`.
    """
    names = list(opened)
    columns: dict[str, list[int]] = {"arm": [], "block": [], "visit": [], "latency_ns": []}
    for block in range(profile.blocks):
        say("blocks")
        for place, name in enumerate(palindrome(names, block)):
            taken = visit(opened[name], pool, order, block * 97, profile.visit_s, profile.visit_frames)
            columns["arm"] += [names.index(name)] * len(taken)
            columns["block"] += [block] * len(taken)
            columns["visit"] += [int(place >= len(names))] * len(taken)
            columns["latency_ns"] += taken
    return {key: np.asarray(values, np.int64) for key, values in columns.items()}


def stage_table(
    bundle: Bundle, spec: dict[str, Any], pool: ImagePool, order: Sequence[int], frames: int
) -> dict[str, dict[str, float]]:
    """Split a frame of the baseline and of the largest sample count into stages, in a run of its own.

    Returns:
        Arm name -> stage -> median milliseconds; without the samples' arm where its frame cannot be split.
    """
    setting, seed = _setting(spec), spec["seed"]
    table: dict[str, dict[str, float]] = {}
    for num_samples in (None, max(spec["num_samples"])):
        clock = arms.StageClock()
        arm = (
            arms.staged_deterministic(bundle, setting, clock)
            if num_samples is None
            else arms.staged_smoothed(bundle, setting, num_samples, seed, clock)
        )
        if arm is None:
            continue
        try:
            rows = []
            for index in range(frames + frames // 4):
                image = pool.images[order[index % len(order)]]
                rows.append(clock.frame(lambda image=image, arm=arm: arm.frame(image)))  # type: ignore[misc]
            kept = rows[frames // 4 :]  # the first fifth warms up
            table[arm.name] = {stage: float(np.median([row[stage] for row in kept])) for stage in kept[0]}
        finally:
            arm.close()
    return table


def cold_start(spec: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Measure the way from nothing to the first decision, and the memory of the classifier by itself."""
    began = time.perf_counter()
    bundle = load_bundle(Path(spec["bundle"]))
    loaded = time.perf_counter()
    classifier = arms.open_smoothed_classifier(bundle, _setting(spec), max(spec["num_samples"]), spec["seed"])
    opened = time.perf_counter()
    pool = arms.load_images(bundle)
    ready = time.perf_counter()
    answer = classifier.classify(pool.images[0])
    done = time.perf_counter()
    since_start_s = time.time() - spec["spawned_at"] - (ready - opened)
    memory = peak_rss_mib()
    arms.check_answer(answer)
    facts = None
    if spec["process"] == 0:  # reading the precision back may take a while
        facts = classifier.engine_facts()
        check_precision(facts, spec["precision"], strict=spec["strict"])
    classifier.close()
    return {
        "process_start_to_first_decision_ms": since_start_s * 1e3,
        "load_to_first_decision_ms": (done - began - (ready - opened)) * 1e3,
        "load_bundle_ms": (loaded - began) * 1e3,
        "open_engines_ms": (opened - loaded) * 1e3,
        "first_decision_ms": (done - ready) * 1e3,
        "peak_rss_mib": memory,
        "engine_facts": facts,
    }


def measure(spec: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Do one process start: the baseline alone, then all arms in blocks, then, in the first one, the stage table."""
    profile = Profile(**{**spec["profile"], "warm_s": tuple(spec["profile"]["warm_s"])})
    bundle = load_bundle(Path(spec["bundle"]))
    pool = arms.load_images(bundle)
    order = pool.order(spec["seed"] + spec["process"])
    say = _reporter(profile.blocks + len(spec["num_samples"]) + 3)
    with ExitStack() as stack:
        say("warm-up")
        setting = _setting(spec)
        baseline = arms.open_deterministic(bundle, setting)
        stack.callback(baseline.close)
        opened, warm = {baseline.name: baseline}, [warm_up(baseline, pool, order, profile)]
        say("baseline alone")
        alone = visit(baseline, pool, order, 0, profile.alone_s, profile.visit_frames)
        memory = {"deterministic": peak_rss_mib()}
        for num_samples in spec["num_samples"]:
            say("warm-up")
            arm = arms.open_smoothed(bundle, setting, num_samples, spec["seed"])
            stack.callback(arm.close)
            opened[arm.name] = arm
            warm.append(warm_up(arm, pool, order, profile))
        before = Snapshot.take()
        times = run_blocks(opened, pool, order, profile, say)
        counters = before.until(Snapshot.take())
        memory["all_arms"] = peak_rss_mib()
    if first := spec["process"] == 0:
        say("stages")
    np.savez(folder / TIMES, alone_ns=np.asarray(alone, np.int64), **times)  # type: ignore[arg-type]
    return {
        "arms": list(opened),
        "images": {"source": pool.source, "real": pool.real, "count": len(pool.images)},
        "warm_up": warm,
        "stages_ms": stage_table(bundle, spec, pool, order, profile.stage_frames) if first else None,
        "counters": counters,
        "peak_rss_mib": memory,
    }


def _setting(spec: dict[str, Any]) -> arms.Setting:
    return arms.Setting(spec["engine"], spec["precision"], spec["threads"], spec["strict"])


def _reporter(steps: int) -> Callable[[str], None]:
    """Return what announces the next of so many steps to the parent."""
    shares = (step / steps for step in range(steps))

    def say(phase: str) -> None:
        print(json.dumps({"phase": phase, "share": next(shares, 1.0)}), flush=True)

    return say


def main(folder: Path) -> int:
    """Do what `spec.json` in the folder asks for; an error of ours is left in `error.json` for the parent to raise."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches the whole group; the parent reports it
    spec = json.loads((folder / SPEC).read_text(encoding="utf-8"))
    try:
        result = (cold_start if spec["mode"] == "cold" else measure)(spec, folder)
    except FLSSError as error:
        report = {"kind": type(error).__name__, "problem": error.problem, "fix": error.fix}
        (folder / ERROR).write_text(json.dumps(report), encoding="utf-8")
        return error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains while it ends
        return 1
    (folder / RESULT).write_text(json.dumps(result), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
