"""A process that ends, by a signal or by itself, loses no result, and a forked one has no stream."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from .moody import moody_image

if TYPE_CHECKING:
    from flss_runtime.bundle import Bundle

    from .conftest import TinyModel

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals and fork")


PROLOGUE = """
import os, signal, sys, threading, time
import numpy as np
from flss_runtime.noise import SeededNoise
from flss_runtime.stream import open_stream
bundle, image = sys.argv[1], np.load(sys.argv[2])
frames = []
callback = lambda result: frames.append(result.frame)
options = dict(threads=1, noise=SeededNoise(0))
"""


def run_script(tiny: TinyModel, moody: Bundle, folder: Path, script: str, work: int = 0) -> subprocess.Popen[str]:
    np.save(folder / "image.npy", moody_image(tiny, work))
    command = [sys.executable, "-W", "ignore", "-c", PROLOGUE + script, str(moody.path), str(folder / "image.npy")]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


class TestProcess:
    @pytest.mark.parametrize("work", [0, 20])
    def test_sigterm_in_mid_frame(self, tiny: TinyModel, moody: Bundle, tmp_path: Path, work: int) -> None:
        script = """
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
numbers = []
try:
    with open_stream(bundle, callback, **options) as stream:
        print("open", flush=True)
        while True:
            numbers.append(stream.submit(image))
finally:
    assert len(frames) == len(set(frames)) and set(numbers) <= set(frames), (len(numbers), len(frames))
    print("counted", len(numbers) > 0)
"""
        for pause_s in (0.05, 0.083):
            process = run_script(tiny, moody, tmp_path, script, work)
            assert process.stdout is not None and process.stdout.readline() == "open\n", process.communicate()
            time.sleep(pause_s)
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=30)
            assert (process.returncode, out, err) == (143, "counted True\n", "")

    @pytest.mark.parametrize("call", ["number = stream.submit(image)", "if stream.health().state == 'closed': break"])
    @pytest.mark.parametrize("ends", [False, True])
    def test_a_handler_that_closes_does_not_hang(
        self, tiny: TinyModel, moody: Bundle, tmp_path: Path, ends: bool, call: str
    ) -> None:
        script = """
import atexit
from flss_runtime.errors import UsageError
number, took, ends = -1, [], "ENDS"
def told():
    print("done", max(took) < 1, set(range(number + 1)) <= set(frames), len(set(frames)) == len(frames))
atexit.register(told)  # runs after what the stream registers
stream = open_stream(bundle, callback, **options)
look = stream._mailbox.look
def slow_look():  # so that the signal comes while the lock is held
    with stream._mailbox._lock:
        time.sleep(0.01)
        return look()
stream._mailbox.look = slow_look
def handler(*_):
    start = time.monotonic()
    stream.close()
    took.append(time.monotonic() - start)
    if ends == "True":
        sys.exit(143)
signal.signal(signal.SIGTERM, handler)
print("open", flush=True)
try:
    while True:
        CALL
except UsageError:
    pass
""".replace("ENDS", str(ends)).replace("CALL", call)
        for pause_s in (0.04, 0.051, 0.067):  # mostly in the middle of the call
            process = run_script(tiny, moody, tmp_path, script)
            assert process.stdout is not None and process.stdout.readline() == "open\n", process.communicate()
            time.sleep(pause_s)
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=30)
            assert (process.returncode, out, err) == (143 if ends else 0, "done True True True\n", "")

    def test_the_end_of_the_process_closes_it(self, tiny: TinyModel, moody: Bundle, tmp_path: Path) -> None:
        script = """
import atexit
atexit.register(lambda: print("results", frames))  # runs after what the stream registers
stream = open_stream(bundle, callback, **options)
stream.submit(image)
"""
        process = run_script(tiny, moody, tmp_path, script, work=20)
        out, err = process.communicate(timeout=30)
        assert (process.returncode, out, err) == (0, "results [0]\n", "")

    def test_a_forked_child_has_no_stream_and_says_so(self, tiny: TinyModel, moody: Bundle, tmp_path: Path) -> None:
        script = """
from flss_runtime.errors import UsageError
with open_stream(bundle, callback, **options) as stream:
    stream.classify(image)
    child = os.fork()
    if child == 0:
        told = 0
        for call in (lambda: stream.submit(image), lambda: stream.classify(image), stream.health):
            try:
                call()
            except UsageError as error:
                told += "parent process" in error.problem
        stream.close()  # returns at once, and leaves the parent's alone
        os._exit(told)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    stream.classify(image)
print("results", frames)
"""
        process = run_script(tiny, moody, tmp_path, script)
        out, err = process.communicate(timeout=30)
        assert (process.returncode, out, err) == (0, "results [0, 1]\n", "")
