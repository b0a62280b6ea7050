"""Does every frame have a result in time, and what does the stream cost over the bare classifier?

usage: [chrt -f 10] python benchmarks/stream.py c10.bundle -o stream.json [--awake]

Frames come at a camera's rate. Four runs of them: with a deadline that is roomy (the time between two frames) and with
one that is tight (the median latency of the first run, which many frames miss), each on a quiet
machine and with every core busy with another process at nice 10. Times are those of the script itself, before `submit`
and on entry of the callback. In the first run the bare classifier takes turns with the stream, a block of frames each,
at the same rate. The camera's own sleep is the control: how late it wakes is how late any timer of this machine may be.
Exit 1 if a frame has no result, or more than one, or has it later than 1 ms after its deadline on the quiet machine,
5 ms on the busy one; a machine whose bare timer is later than that is flagged. With --awake no core goes to sleep
meanwhile, for waking one takes time.
"""

from __future__ import annotations

import argparse
import os
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from command_line import add_result_options, camera_size, require_at_least, run_timing
from numpy.typing import NDArray
from stream_plot import plot_stream

from flss_runtime.arms import accept_all
from flss_runtime.atomic import refuse_existing
from flss_runtime.bundle import Bundle, load_bundle
from flss_runtime.classifier import SmoothedClassifier
from flss_runtime.environment import describe_environment
from flss_runtime.errors import CheckFailed, UsageError
from flss_runtime.image_pool import load_images
from flss_runtime.images import fit_image
from flss_runtime.latency import overhead, summarise
from flss_runtime.machine import Snapshot, logical_cores
from flss_runtime.noise import SeededNoise
from flss_runtime.opening import open_classifier
from flss_runtime.stream import Origin, StreamClassifier, StreamResult
from flss_runtime.validity import Flag, flag, machine_flags, profile_flags, run_flags

LIMIT_MS = {"quiet": 1.0, "busy": 5.0}
LEAST_ANSWERED = 0.99  # of the frames, for their latencies to be those of the classifier
WARM_UP = 100  # frames of the bare classifier at the camera's rate
BLOCK = 100  # frames, after which the bare classifier has its turn
SETTLE_S = 2.0
# Ends by itself where its parent was killed, and has no real-time priority where that has one.
BUSY = (
    "import os, sys\n"
    "if hasattr(os, 'sched_setscheduler'): os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))\n"
    "os.nice(10)\nwhile os.getppid() == int(sys.argv[1]):\n    for _ in range(10**6): pass"
)

WAKE_UP = Path("/dev/cpu_dma_latency")

Image = NDArray[np.uint8]


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for and return the exit code: 1 too late, 5 not valid, else FLSSError's."""
    return run_timing(
        "stream.py", arguments, parse=_parse, measure=measure, plot=plot_stream, summary=_summary, judge=judge
    )


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run the frames; return the result's JSON values without the command."""
    bundle, environment = load_bundle(options.bundle), describe_environment()
    pool = load_images(bundle)
    if options.frame:
        pool = pool.as_frames(camera_size(options.frame))
    images = [pool.images[index] for index in pool.order(0)]
    period_ns = round(1e9 / options.rate)
    deadlines_ms, runs, counters = {"roomy": period_ns / 1e6}, [], []
    with awake_cores(options.awake), open_bare(bundle, options) as classifier:
        bare = bare_answer(classifier)
        paced(bare, images, WARM_UP, period_ns)
        for load, name in product(LIMIT_MS, ("roomy", "tight")):
            beside = None if runs else bare
            with busy_cores(load == "busy"):
                before = Snapshot.take()
                found = run(bundle, options, images, deadlines_ms[name], beside)
                counters.append((load, before.until(Snapshot.take())))
            runs.append({"load": load, "deadline": name, "deadline_ms": deadlines_ms[name], **found})
            deadlines_ms.setdefault("tight", found["latency"]["latency_ms"]["p50"])
            print(f"{load}, {name}: {found['statuses']}", file=sys.stderr, flush=True)
    flags = profile_flags("quick" if options.quick else "standard") + machine_flags(environment, options.threads)
    quiet = [row for load, row in counters if load == "quiet"]
    flags += run_flags(quiet, environment["load_average"], environment["logical_cores"])
    others = run_flags([row for load, row in counters if load == "busy"], None, environment["logical_cores"])
    flags += [item for item in others if item["name"] != "other_load"]  # that is what it is about
    flags += timer_flags(runs)
    if not keeps_up(runs[0]["statuses"]):
        flags.append(flag("slow", f"the classifier does not keep up at {options.rate:g} Hz: {runs[0]['statuses']}"))
    if options.frames < 3000 and not options.quick:
        flags.append(flag("few_frames", f"{options.frames} frames a run; 3,000 are promised"))
    return {
        "artifact": {"bundle": bundle.path.name, "digest": bundle.digest},
        "environment": environment,
        "config": {
            "engine": options.engine,
            "threads": options.threads,
            "num_samples": options.num_samples,
            "frames": options.frames,
            "rate_hz": options.rate,
            "scheduling": scheduling(),
            "awake": options.awake,
            "frame": list(camera_size(options.frame)) if options.frame else None,
            "input": bundle.input.to_json(),
        },
        "results": {"runs": runs, "limit_ms": None if options.quick else LIMIT_MS},
        "validity": {"valid": not flags, "flags": flags, "counters": [row for _, row in counters]},
    }


def judge(result: dict[str, Any]) -> None:
    """Refuse a frame without its result, and one that came too late.

    Raises:
        CheckFailed: there is one.
    """
    problems, limits = [], result["results"]["limit_ms"]
    for row in result["results"]["runs"]:
        name = f"{row['load']}, {row['deadline']} deadline"
        if row["missing"] or row["twice"]:
            problems.append(f"{name}: {row['missing']} frames without result, {row['twice']} with more than one")
        if limits is not None and row["past_deadline"]["max_ms"] > limits[row["load"]]:
            over = row["past_deadline"]["max_ms"]
            limit = limits[row["load"]]
            count, frames = row["later_than_ms"][f"{limit:g}"], row["latency"]["n"]
            problems.append(f"{name}: {count} of {frames} results came up to {over:.2f} ms late (limit {limit:g})")
    if problems:
        raise CheckFailed("; ".join(problems), "see which runs; a machine that was not quiet is flagged")


def run(
    bundle: Bundle,
    options: argparse.Namespace,
    images: list[Image],
    deadline_ms: float,
    bare: Callable[..., Any] | None,
) -> dict[str, Any]:
    """Run one camera into a stream, and where it is given the bare classifier beside it.

    Returns:
        JSON values: "statuses", "missing" and "twice" (frames), "latency", "past_deadline" and "timer_late" (of the
        camera's sleep) as `summarise`, "later_than_ms" (limit -> frames), the stream's own "health", and with a bare
        classifier "bare" as `summarise`, and "overhead".
    """
    frames, period_ns = options.frames, round(1e9 / options.rate)
    woken_late, submitted, called = (np.zeros(frames, np.int64) for _ in range(3))
    calls, statuses, bare_ms = np.zeros(frames, np.int64), [""] * frames, np.zeros(frames)
    clock = time.monotonic_ns

    def on_result(result: StreamResult) -> None:
        called[result.frame] = clock()
        calls[result.frame] += 1
        statuses[result.frame] = result.decision.status.value

    origin = Origin(options.engine, "fp32", "latent", bundle.path.name, bundle.digest, bundle.noise_scale)
    with StreamClassifier(
        lambda: open_bare(bundle, options), on_result, origin=origin, deadline_s=deadline_ms / 1e3
    ) as stream:
        for first in range(0, frames, BLOCK):
            start = clock() + period_ns
            for index in range(first, min(first + BLOCK, frames)):
                due = start + (index - first) * period_ns
                sleep_until(due)
                submitted[index] = clock()
                woken_late[index] = submitted[index] - due
                stream.submit(images[index % len(images)])
            sleep_until(clock() + period_ns)  # the last frame of the block is answered by then, or late
            if bare is not None:
                bare_ms[first : first + BLOCK] = paced(bare, images, min(BLOCK, frames - first), period_ns)
        health = stream.health().to_json()
    found = describe(submitted, called, calls, deadline_ms)
    found |= {"timer_late": summarise(woken_late / 1e6), "statuses": dict(Counter(statuses)), "health": health}
    if bare is None or not keeps_up(found["statuses"]):  # late results are no latency of the classifier
        return found
    return found | compare((called - submitted) / 1e6, bare_ms)


def describe(
    submitted: NDArray[np.int64], called: NDArray[np.int64], calls: NDArray[np.int64], deadline_ms: float
) -> dict[str, Any]:
    """Return how many frames had no result or several, and how long the others took.

    Args:
        submitted: (n,) nanoseconds.
        called: (n,) nanoseconds, when the callback began.
        calls: (n,) how often it was called with this frame.
        deadline_ms: what was promised.
    """
    latency_ms = (called - submitted)[calls > 0] / 1e6
    past_ms = np.maximum(latency_ms - deadline_ms, 0)
    return {
        "missing": int((calls == 0).sum()),
        "twice": int((calls > 1).sum()),
        "latency": summarise(latency_ms),
        "past_deadline": summarise(past_ms),
        "later_than_ms": {f"{limit:g}": int((past_ms > limit).sum()) for limit in LIMIT_MS.values()},
    }


def keeps_up(statuses: dict[str, int]) -> bool:
    """Say whether nearly all frames were accepted, or rejected by their vote."""
    answered = statuses.get("accepted", 0) + statuses.get("low_vote", 0)
    return answered >= LEAST_ANSWERED * sum(statuses.values())


def scheduling() -> str | None:
    """Return how this process is scheduled, such as "SCHED_OTHER" or "SCHED_FIFO 10"; None where it cannot say."""
    if not hasattr(os, "sched_getscheduler"):
        return None
    policies = {os.SCHED_OTHER: "SCHED_OTHER", os.SCHED_FIFO: "SCHED_FIFO", os.SCHED_RR: "SCHED_RR"}
    policy, priority = os.sched_getscheduler(0), os.sched_getparam(0).sched_priority
    return policies.get(policy, str(policy)) + (f" {priority}" if priority else "")


def timer_flags(runs: list[dict[str, Any]]) -> list[Flag]:
    """Return that a bare timer was later than the limit, where it was: nothing can be proven on such a machine."""
    flags = []
    for row in runs:
        late, limit = row["timer_late"]["max_ms"], LIMIT_MS[row["load"]]
        if late > limit:
            detail = f"the camera's sleep ended up to {late:.2f} ms late ({row['load']}, {row['deadline']} deadline)"
            flags.append(flag("timer", f"{detail}: this machine's timers do not keep {limit:g} ms"))
    return flags


def compare(stream_ms: NDArray[np.float64], bare_ms: NDArray[np.float64]) -> dict[str, Any]:
    """Return the bare classifier's latencies and what the stream adds, by blocks of frames that had both."""
    blocks = [
        [float(np.median(each[start : start + BLOCK])) for start in range(0, each.size - BLOCK + 1, BLOCK)]
        for each in (stream_ms, bare_ms)
    ]
    return {"bare": summarise(bare_ms), "overhead": overhead("stream", "bare", [blocks[0]], [blocks[1]]).to_json()}


def open_bare(bundle: Bundle, options: argparse.Namespace) -> SmoothedClassifier:
    """Open the classifier that both run."""
    policy = accept_all(bundle, options.num_samples)
    return open_classifier(bundle, options.engine, policy=policy, noise=SeededNoise(0), threads=options.threads)


def bare_answer(classifier: SmoothedClassifier) -> Callable[[Image], Any]:
    """Return what a loop without stream does with a camera frame."""
    return lambda image: classifier.classify(fit_image(image, classifier.input))


def paced(answer: Callable[[Image], Any], images: list[Image], frames: int, period_ns: int) -> NDArray[np.float64]:
    """Return the latencies (frames,) in milliseconds of frames that come at a camera's rate."""
    found, start = np.zeros(frames), time.monotonic_ns()
    for index in range(frames):
        sleep_until(start + index * period_ns)
        begun = time.monotonic_ns()
        answer(images[index % len(images)])
        found[index] = (time.monotonic_ns() - begun) / 1e6
    return found


def sleep_until(when_ns: int) -> None:
    """Sleep until a time of `time.monotonic_ns`."""
    left = when_ns - time.monotonic_ns()
    if left > 0:
        time.sleep(left / 1e9)


@contextmanager
def busy_cores(wanted: bool) -> Iterator[None]:
    """Keep every core busy with a process at nice 10 while the block runs, if that is wanted."""
    command = [sys.executable, "-c", BUSY, str(os.getpid())]
    children = [subprocess.Popen(command) for _ in range(logical_cores() if wanted else 0)]
    try:
        time.sleep(SETTLE_S if wanted else 0)
        yield
    finally:
        for child in children:
            child.kill()
            child.wait()


@contextmanager
def awake_cores(wanted: bool) -> Iterator[None]:
    """Let no core enter a sleep state while the block runs, if that is wanted.

    As `cyclictest` does: Linux keeps to the shortest wake-up time that any open file of this device asks for.

    Raises:
        UsageError: the device is not there, or not for this user.
    """
    if not wanted:
        yield
        return
    fix = "run as root on Linux, outside of a container, or without it"
    if WAKE_UP.exists() and not WAKE_UP.is_char_device():
        raise UsageError(f"--awake needs {WAKE_UP}, which is no device here", fix)
    try:
        device = WAKE_UP.open("r+b", buffering=0)  # creates nothing
    except OSError as error:
        raise UsageError(f"--awake needs {WAKE_UP}: {error.strerror}", fix) from error
    with device:
        device.write(struct.pack("i", 0))  # microseconds
        yield


def _summary(result: dict[str, Any]) -> str:
    lines = []
    for row in result["results"]["runs"]:
        stated, over = row["latency"]["latency_ms"], row["past_deadline"]["max_ms"]
        shown = ", ".join(f"{name} {'-' if value is None else format(value, '.2f')}" for name, value in stated.items())
        counts = ", ".join(f"{count} {status}" for status, count in row["statuses"].items())
        timer, later = row["timer_late"]["max_ms"], row["later_than_ms"]["1"]
        lines.append(
            f"{row['load']}, deadline {row['deadline_ms']:.1f} ms: {shown} ms; at most {over:.3f} ms past it, {later} "
            f"frames over 1 ms (a bare timer: {timer:.3f} ms); {counts}"
        )
        if "overhead" in row:
            cost = row["overhead"]
            lines.append(f"  {cost['difference_ms']:+.3f} ms, {cost['percent']:+.2f} % over the bare classifier")
    return "\n".join(lines)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--frames", type=int, help="a run; by default 3,000, with --quick 300; p99.9 needs 6,636")
    parser.add_argument("--rate", type=float, default=30.0, help="frames a second")
    parser.add_argument("--frame", help="camera frames of this size, such as 640x480, to be fitted")
    parser.add_argument("-n", "--num-samples", type=int, default=100)
    parser.add_argument("--engine", default="ort")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--awake", action="store_true", help="keep the cores out of sleep states (Linux, root)")
    parser.add_argument("--quick", action="store_true", help="a first look, always flagged; lateness is not judged")
    add_result_options(parser)
    options = parser.parse_args(arguments)
    if options.frames is None:
        options.frames = 300 if options.quick else 3000
    if options.frame:
        camera_size(options.frame)
    require_at_least(options, frames=2 * BLOCK, rate=1, threads=1, num_samples=1)
    refuse_existing(options.output, options.overwrite)
    return options


if __name__ == "__main__":
    sys.exit(main())
