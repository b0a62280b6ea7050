"""What `flss-edge doctor` looks at: can this machine classify, with which engines, and can its timings be trusted?"""

from __future__ import annotations

import os
import platform
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from flss_runtime import jetson, machine
from flss_runtime.engine_cache import EngineCache
from flss_runtime.engine_trial import Trial, try_engine
from flss_runtime.engines.trt import import_tensorrt
from flss_runtime.engines.trt_library import label
from flss_runtime.environment import describe_environment, version_of
from flss_runtime.errors import EngineUnavailable, OutputError
from flss_runtime.gpu import Driver, Gpu, find_gpus

_OLDEST_PYTHON = (3, 10)
_CPU_ENGINES = ("ort", "openvino")
_NVIDIA_ENGINES = ("ort:cuda", "ort:tensorrt", "ort:tensorrt-rtx", "trt")
_CUDA = "CUDAExecutionProvider"
_RUNTIME_WHEELS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml")


@dataclass(frozen=True, slots=True)
class Check:
    """One line of `flss-edge doctor`.

    Attributes:
        status: "fail" means that no image can be classified until `fix` is done.
        fix: what to do, empty when ok.
    """

    name: str
    status: Literal["ok", "warn", "fail"]
    detail: str
    fix: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """What was found.

    Attributes:
        checks: in the order of their weight.
        trials: the engines that were tried; those of NVIDIA only where a GPU is.
    """

    checks: list[Check]
    trials: list[Trial]
    gpus: list[Gpu]
    driver: Driver

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values, by what it is about."""
        environment = describe_environment()
        return {
            "checks": [asdict(check) for check in self.checks],
            "devices": [{"kind": "cpu", "name": environment["cpu"]}]
            + [{"kind": "gpu", **asdict(gpu)} for gpu in self.gpus],
            "drivers": {"nvidia": self.driver.nvidia, "cuda": self.driver.cuda, "jetson_linux": jetson.release()},
            "libraries": environment["packages"],
            "providers": {trial.engine: list(trial.offers) for trial in self.trials if trial.engine in _CPU_ENGINES},
            "engines": [asdict(trial) | {"usable": trial.usable} for trial in self.trials],
            "caches": _describe_cache(),
            "clocks": {
                "cpu_mhz": environment["cpu_mhz"],
                "cpu_governors": environment["cpu_governors"],
                "power_mode": environment["power_mode"],
                "on_battery": environment["on_battery"],
            },
        }


def diagnose() -> Diagnosis:
    """Look at this machine; nothing on it is changed, and what the tried engines cache is thrown away."""
    gpus, driver = find_gpus()
    trials = [try_engine(engine) for engine in _CPU_ENGINES]
    # Without NVML a container may hide a GPU that works; a GPU's build of ONNX Runtime says that one is expected.
    on_gpu = bool(gpus) or any(_CUDA in trial.offers for trial in trials)
    trials += [try_engine(engine) for engine in (_NVIDIA_ENGINES if on_gpu else ())]
    checks = [
        _check_python(),
        *_check_packages(),
        *_check_engines(trials),
        *(() if on_gpu else _check_absent_gpu()),
        _check_conflicts(),
        _check_training(),
        _check_cache(),
        *_check_processor(),
        *check_gpus(gpus, driver),
        *check_jetson(jetson.power_mode(), gpus),
    ]
    return Diagnosis(checks, trials, gpus, driver)


def _check_python() -> Check:
    text = f"{platform.python_implementation()} {platform.python_version()}"
    if sys.version_info[:2] >= _OLDEST_PYTHON:
        return Check("python", "ok", text)
    return Check("python", "fail", text, "use Python 3.10 or newer")


def _check_packages() -> Iterator[Check]:
    for package, needed_for in (("numpy", "everything"), ("pillow", "reading picture files")):
        version = version_of(package)
        if version:
            yield Check(package, "ok", version)
        else:
            status: Literal["warn", "fail"] = "fail" if package == "numpy" else "warn"
            yield Check(package, status, f"absent, needed for {needed_for}", f"pip install {package}")


def _check_engines(trials: Sequence[Trial]) -> Iterator[Check]:
    """Report each trial; a machine on which one engine works can do without the others."""
    any_works = any(trial.usable for trial in trials)
    for trial in trials:
        if trial.usable:
            detail = f"{trial.library} on {trial.device}, computes fp32 as {trial.precision}"
            yield Check(f"engine {trial.engine}", "ok", detail)
        else:
            yield Check(f"engine {trial.engine}", "warn" if any_works else "fail", trial.problem, trial.fix)


def _check_absent_gpu() -> Iterator[Check]:
    """Say why no engine of NVIDIA's was tried, and what TensorRT can do all the same."""
    detail = f"off: {', '.join(_NVIDIA_ENGINES)} need an NVIDIA GPU, and none is visible here"
    with suppress(EngineUnavailable):
        detail += f"; {label(import_tensorrt(rtx=True))} builds engines for other machines (prepare --target)"
    yield Check("engines of NVIDIA", "ok", detail)


def _check_conflicts() -> Check:
    """Several ONNX Runtime wheels overwrite each other's files: the last one installed wins, silently."""
    found = [f"{name} {version}" for name in _RUNTIME_WHEELS if (version := version_of(name))]
    if len(found) < 2:
        return Check("conflicts", "ok", "none")
    fix = f"pip uninstall {' '.join(text.split()[0] for text in found)}, then install the one extra you need"
    return Check("conflicts", "fail", f"installed over each other: {', '.join(found)}", fix)


def _describe_cache() -> dict[str, Any]:
    """Return where engines are kept, which there are, and how much room all caches take."""
    try:
        cache = EngineCache()
    except OutputError as error:
        return {"root": None, "usable": False, "bytes": 0, "engines": [], "problem": error.problem, "fix": error.fix}
    problem, fix = _try_cache(cache)
    engines = [
        {
            "graph": entry.graph_name,
            **asdict(entry.key),
            "precision": entry.precision,
            "bytes": entry.size,
            "build_s": entry.seconds,
            "verdict": (entry.verdict() or {}).get("verdict"),
        }
        for entry in cache.entries()
    ]
    return {
        "root": _below_home(cache.root),
        "usable": not problem,
        "problem": problem,
        "fix": fix,
        "bytes": sum(_size(Path(folder, name)) for folder, _, names in os.walk(cache.root) for name in names),
        "engines": engines,
    }


def _try_cache(cache: EngineCache) -> tuple[str, str]:
    """Return what stands against keeping engines here and loading them again, and what to do; "" twice for nothing."""
    try:
        cache.check()
    except OutputError as error:
        full, shown = str(cache.root), _below_home(cache.root)
        return error.problem.replace(full, shown), error.fix.replace(full, shown)
    return "", ""


def _size(file: Path) -> int:
    """Return a file's bytes; 0 for what is no file, or not any more: a builder may be at work beside us."""
    with suppress(OSError):
        found = file.stat()
        return found.st_size if stat.S_ISREG(found.st_mode) else 0
    return 0


def _below_home(folder: Path) -> str:
    try:
        home = Path.home()
    except RuntimeError:  # this user has none
        return str(folder)
    return str(Path("~", folder.relative_to(home))) if folder.is_relative_to(home) else str(folder)


def _check_cache() -> Check:
    found = _describe_cache()
    if not found["usable"]:
        return Check("cache", "warn", found["problem"], found["fix"])
    engines = found["engines"]
    passed = sum(engine["verdict"] == "passed" for engine in engines)
    detail = f"{len(engines)} engines, {passed} verified; {found['bytes'] / 2**20:.1f} MiB in {found['root']}"
    return Check("cache", "ok", detail)


def _check_training() -> Check:
    missing = [name for name in ("torch", "torchvision", "onnx") if find_spec(name) is None]
    if not missing:
        return Check("training", "ok", f"torch {version_of('torch')}, onnx {version_of('onnx')}")
    return Check(
        "training", "ok", f"off: {', '.join(missing)} absent; only train, export and what reads a checkpoint need them"
    )


def _check_processor() -> Iterator[Check]:
    physical, logical = machine.installed_cores(), machine.logical_cores()
    yield Check(
        "processor", "ok", f"{machine.cpu_model() or 'unknown'}, {physical or '?'} cores, {logical} usable threads"
    )
    governors = machine.governors()
    if governors and governors != ["performance"]:
        fix = "before timing: sudo cpupower frequency-set -g performance (Jetson: sudo jetson_clocks)"
        yield Check("cpu governor", "warn", ", ".join(governors), fix)
    else:
        yield Check("cpu governor", "ok", "performance" if governors else "no frequency control visible")
    limit = machine.cgroup_cpu_limit()
    if limit is not None and limit < logical:
        fix = "raise the container's limit (docker run --cpus), or pass --threads to match it"
        yield Check("cpu limit", "warn", f"the container may use {limit:g} of {logical} processors", fix)
    else:
        yield Check("cpu limit", "ok", "none" if limit is None else f"{limit:g} processors")
    if machine.on_battery():
        yield Check("power", "warn", "on battery: clocks may drop", "plug the machine in before timing")


def check_gpus(gpus: Sequence[Gpu], driver: Driver) -> Iterator[Check]:
    """Report each GPU and whether its clock can be trusted.

    Args:
        gpus: what `find_gpus` returned.
        driver: the same.
    """
    for index, gpu in enumerate(gpus):
        facts = [
            gpu.name,
            gpu.compute_capability and f"compute capability {gpu.compute_capability}",
            gpu.memory_mib and f"{gpu.memory_mib} MiB",
            driver.nvidia and f"driver {driver.nvidia}",
            driver.cuda and f"CUDA up to {driver.cuda}",
        ]
        yield Check(f"gpu {index}", "ok", ", ".join(fact for fact in facts if fact))
        clock = f"{gpu.clock_mhz:g} of {gpu.max_clock_mhz:g} MHz" if gpu.clock_mhz and gpu.max_clock_mhz else ""
        if gpu.slowed_by:
            fix = "before timing: cool it, raise its power limit, or look at nvidia-smi -q -d PERFORMANCE"
            yield Check(f"gpu {index} clock", "warn", f"{clock or 'slowed'}: {', '.join(gpu.slowed_by)}", fix)
        elif clock:
            yield Check(f"gpu {index} clock", "ok", clock)
        else:
            yield Check(f"gpu {index} clock", "warn", "cannot be read", "pip install nvidia-ml-py")
        if gpu.processes:
            fix = "end them before timing: nvidia-smi lists them"
            yield Check(f"gpu {index} load", "warn", f"{gpu.processes} processes compute on it", fix)


def check_jetson(mode: str | None, gpus: Sequence[Gpu]) -> Iterator[Check]:
    """Report a Jetson's power mode and whether its clocks are held; nothing on another machine.

    Args:
        mode: what `jetson.power_mode` returned.
        gpus: what `find_gpus` returned.
    """
    if mode is not None and not mode.startswith("MAXN"):
        fix = "before timing: sudo nvpmodel -m NUMBER; /etc/nvpmodel.conf lists the modes (POWER_MODEL ID)"
        yield Check("power mode", "warn", f"{mode}: limits the clocks", fix)
    elif mode is not None:
        yield Check("power mode", "ok", mode)
    locked = next((gpu.clock_locked for gpu in gpus if gpu.clock_locked is not None), None)
    if locked is False:
        yield Check("gpu clock", "warn", "moves with the load", "before timing: sudo jetson_clocks")
    elif locked:
        yield Check("gpu clock", "ok", "held")
