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
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np

from flss_runtime.arm_names import BASELINE, CONTROL, parse_arm
from flss_runtime.arms import Arm, Setting, check_answer, from_camera, open_arm, open_smoothed_classifier
from flss_runtime.bundle import load_bundle
from flss_runtime.energy import energy_counters, measure_energy
from flss_runtime.errors import FLSSError
from flss_runtime.gpu import first_device
from flss_runtime.image_pool import ImagePool, load_images
from flss_runtime.machine import Snapshot, peak_rss_mib, rss_mib
from flss_runtime.precision_check import check_precision
from flss_runtime.profiles import Profile
from flss_runtime.stages import stage_table
from flss_runtime.throughput import measure_throughput
from flss_runtime.visits import frame_seconds, run_blocks, stream, warm_up

RESULT, TIMES, ERROR, SPEC = "result.json", "times.npz", "error.json", "spec.json"


def cold_start(spec: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Measure the way from nothing to the first decision, and the memory of the arm that the verdict is about."""
    imported_s = time.time() - spec["spawned_at"]
    with first_device() as device:
        held = None if device is None else device.used_mib()
        began = time.perf_counter()
        bundle = load_bundle(Path(spec["bundle"]))
        loaded = time.perf_counter()
        setting = _setting(spec)
        classifier = open_smoothed_classifier(bundle, parse_arm(spec["primary"]), setting, spec["seed"])
        opened = time.perf_counter()
        pool = load_images(bundle)
        image = (pool if setting.camera is None else pool.as_frames(setting.camera)).images[0]
        ready = time.perf_counter()
        answer = from_camera(classifier.classify, bundle.input, setting)(image)
        done = time.perf_counter()
        peak, resident = peak_rss_mib(), rss_mib()
        used = None if device is None else device.used_mib()
    check_answer(answer)
    facts = None
    if spec["process"] == 0:  # reading the precision back may take a while
        facts = classifier.engine_facts()
        check_precision(facts, spec["precision"], strict=spec["strict"])
    classifier.close()
    return {
        "process_start_to_first_decision_ms": (imported_s + (done - began) - (ready - opened)) * 1e3,
        "interpreter_and_imports_ms": imported_s * 1e3,
        "load_to_first_decision_ms": (done - began - (ready - opened)) * 1e3,
        "load_bundle_ms": (loaded - began) * 1e3,
        "open_engines_ms": (opened - loaded) * 1e3,
        "first_decision_ms": (done - ready) * 1e3,
        "peak_rss_mib": peak,
        "rss_mib": resident,
        "device_mib": None if held is None or used is None else used - held,
        "engine_facts": facts,
    }


def measure(spec: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Do one process start: each arm by itself, then all in blocks, then what is measured beside the latency."""
    profile = Profile.from_json(spec["profile"])
    bundle = load_bundle(Path(spec["bundle"]))
    setting, first = _setting(spec), spec["process"] == 0
    encoder_size = load_images(bundle)
    pool = encoder_size if setting.camera is None else encoder_size.as_frames(setting.camera)
    order = pool.order(spec["seed"] + spec["process"])
    say = _reporter(2 * len(spec["arms"]) + 3 + profile.blocks + len(profile.batches) + 2)
    opened: dict[str, Arm] = {}
    warm, streams = [], {}
    memory: dict[str, float | None] = {}

    def by_itself(arm: Arm) -> None:
        say("warm-up")
        warm.append(warm_up(arm, pool, order, profile))
        say(f"{arm.name} by itself")
        streams[arm.name] = stream(arm, pool, order, 0, profile.stream_s)

    with ExitStack() as stack:
        with closing(open_arm(bundle, BASELINE, setting, spec["seed"])) as alone:  # while nothing else is there
            by_itself(alone)
            memory[BASELINE] = peak_rss_mib()
        for name in _opening_order(spec):
            opened[name] = open_arm(bundle, name, setting, spec["seed"])
            stack.callback(opened[name].close)
            if name == BASELINE:
                warm_up(opened[name], pool, order, profile)
            else:
                by_itself(opened[name])
        before = Snapshot.take()
        settle, count = profile.frames_of_visit(frame_seconds(warm[0]))
        times = run_blocks({name: opened[name] for name in _names(spec)}, pool, order, profile, settle + count, say)
        counters = before.until(Snapshot.take())
        memory["all_arms"] = peak_rss_mib()
        pair = [opened[BASELINE], opened[spec["primary"]]]
        throughput = measure_throughput(pair, encoder_size, profile.batches, profile.batch_s, say)
        energy = _energy(pair, pool, order, profile.energy_s, say) if first else []
    say("stages")
    shown = [name for name in _names(spec) if name != CONTROL]
    stages = stage_table(bundle, shown, setting, spec["seed"], pool, profile.stage_frames)
    streamed = {f"stream_{index}": np.asarray(streams[name], np.int64) for index, name in enumerate(_names(spec))}
    np.savez(folder / TIMES, **streamed, **times)  # type: ignore[arg-type]
    return {
        "arms": _names(spec),
        "images": {"source": pool.source, "real": pool.real, "count": len(pool.images)},
        "settle_frames": settle,
        "visit_frames": count,
        "warm_up": warm,
        "stages_ms": stages,
        "throughput": throughput,
        "energy": energy,
        "counters": counters,
        "peak_rss_mib": memory,
    }


def _energy(
    arms: Sequence[Arm], pool: ImagePool, order: Sequence[int], seconds: float, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    say("energy")
    with energy_counters() as found:
        return measure_energy(arms, pool, order, seconds, found)


def _names(spec: dict[str, Any]) -> list[str]:
    return [BASELINE, *spec["arms"]]


def _opening_order(spec: dict[str, Any]) -> list[str]:
    """Return all arms, rotated: what is opened late finds another memory layout, and no arm keeps its place."""
    names = _names(spec)
    turn = spec["process"] % len(names)
    return [*names[turn:], *names[:turn]]


def _setting(spec: dict[str, Any]) -> Setting:
    camera = spec["camera"] and tuple(spec["camera"])
    return Setting(spec["engine"], spec["precision"], spec["threads"], spec["strict"], camera)


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
