"""Where ONNX Runtime can run a graph: its execution providers, how each is set up, and what an absent one needs."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any

from flss_runtime.cache_files import cache_root
from flss_runtime.errors import EngineUnavailable, OutputError
from flss_runtime.integrity import sha256_file

_log = logging.getLogger("flss_runtime")

_INSTALL_GPU = (
    "pip uninstall -y onnxruntime (it and onnxruntime-gpu overwrite each other), then pip install 'flss-edge[cuda]' "
    "'onnxruntime-gpu[cuda,cudnn]'"
)
_FOLDER = "FOLDER"
_INSTALL_RTX = "pip install onnxruntime-ep-nv-tensorrt-rtx beside onnxruntime 1.24 or newer"


@dataclass(frozen=True)
class Device:
    """One execution provider of ONNX Runtime.

    Attributes:
        provider: Its name; a plugin may give another (`provider_name`).
        memory: Where its tensors live, as ONNX Runtime calls it: "cpu" or "cuda".
        install: How it gets onto a machine.
        options: What it is set up with.
        caching: Options that let it keep what it builds in a folder, which stands for `_FOLDER` in them.
        beside: Provider of the nodes that this one does not take; the CPU's always comes last.
        plugin: Package that registers it, where it is not built into ONNX Runtime.
    """

    provider: str
    memory: str = "cuda"
    install: str = _INSTALL_GPU
    options: Mapping[str, str] = field(default_factory=dict)
    caching: Mapping[str, str] = field(default_factory=dict)
    beside: str = ""
    plugin: str = ""

    @property
    def binds(self) -> bool:
        """Whether a session's tensors can be kept on the device.

        ONNX Runtime allocates there with its own CUDA code, which the CPU's build that a plugin stands beside has not.
        """
        return self.memory != "cpu" and not self.plugin


DEVICES: Mapping[str, Device] = {
    "cpu": Device("CPUExecutionProvider", memory="cpu", install="pip install --force-reinstall 'flss-edge[cpu]'"),
    "cuda": Device(
        "CUDAExecutionProvider",
        # The default search, EXHAUSTIVE, times every algorithm at each new shape: hundreds of milliseconds each.
        # TF32 is on by default and keeps 10 bits of a float32's mantissa: that would be another precision.
        options={
            "cudnn_conv_algo_search": "HEURISTIC",
            "use_tf32": "0",
            "arena_extend_strategy": "kSameAsRequested",
            "enable_cuda_graph": "0",
        },
    ),
    "tensorrt": Device(
        "TensorrtExecutionProvider",
        options={"trt_cuda_graph_enable": "0"},
        caching={
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": _FOLDER,
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": _FOLDER,
        },
        beside="CUDAExecutionProvider",
    ),
    "tensorrt-rtx": Device(
        "NvTensorRTRTXExecutionProvider",
        install=_INSTALL_RTX,
        options={"enable_cuda_graph": "0"},  # its default is on, and a captured graph keeps the first run's addresses
        caching={"nv_runtime_cache_path": _FOLDER},
        plugin="onnxruntime_ep_nv_tensorrt_rtx",
    ),
}


def set_up(
    library: ModuleType, device: Device, options: Any, settings: Mapping[str, str]
) -> list[tuple[str, dict[str, str]]]:
    """Make a device ready for a session.

    Args:
        library: The imported onnxruntime.
        device: Where the session is to run.
        options: The session's options; a plugin is entered there.
        settings: As `settings_for` gives them.

    Returns:
        The `providers` argument of the session; empty where the options hold the provider.

    Raises:
        EngineUnavailable: This onnxruntime does not have the provider, or the provider sees no device.
    """
    if device.caching:
        # TensorRT's providers have no option that keeps them from TF32 (onnxruntime issue 26029), only this variable.
        os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
    if device.plugin:
        options.add_provider_for_devices(_plugin_devices(library, device), dict(settings))
        return []
    present = library.get_available_providers()
    if device.provider not in present:
        raise EngineUnavailable(
            f"this onnxruntime {library.__version__} has no {device.provider} (it has {', '.join(present)})",
            device.install,
        )
    beside = [(device.beside, dict(DEVICES["cuda"].options))] if device.beside in present else []
    return [(device.provider, dict(settings)), *beside]


def settings_for(device: Device, graph: Path) -> dict[str, str]:
    """Return a provider's options for a graph.

    What TensorRT's providers build takes up to minutes, so it is kept in the machine's cache, in a folder of the
    graph's own: they look it up by the names in a graph, and would take that of another one with other weights.

    Args:
        device: Where the graph is to run.
        graph: ONNX file.
    """
    settings = dict(device.options)
    if not device.caching:
        return settings
    try:
        folder = cache_root() / "onnxruntime" / device.provider / sha256_file(graph)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OutputError, OSError) as error:
        _log.warning("%s builds its engines at each start, because they cannot be kept: %s", device.provider, error)
        return settings
    return {**settings, **{name: value.replace(_FOLDER, str(folder)) for name, value in device.caching.items()}}


def preload(library: ModuleType, device: Device) -> str:
    """Load the CUDA libraries that came as Python packages, which the system's loader does not find by itself.

    Returns:
        What could not be loaded, in words; "" where there is nothing to say.
    """
    if device.memory != "cuda" or device.plugin or not hasattr(library, "preload_dlls"):
        return ""
    said = StringIO()
    with redirect_stdout(said):  # it prints its findings, and stdout belongs to our results
        library.preload_dlls()
    failures = [line.split(":", 1)[0] for line in said.getvalue().splitlines() if line.startswith("Failed to load")]
    return "; ".join(failures)


def provider_name(device: Device) -> str:
    """Return what ONNX Runtime calls a device's provider: a plugin says its name itself.

    Raises:
        EngineUnavailable: The plugin is not installed, or cannot be loaded.
    """
    return str(_plugin(device).get_ep_name()) if device.plugin else device.provider


def _plugin(device: Device) -> ModuleType:
    try:
        return importlib.import_module(device.plugin)
    except (ImportError, OSError) as error:
        raise EngineUnavailable(f"{device.provider} cannot be loaded ({error})", device.install) from error


def _plugin_devices(library: ModuleType, device: Device) -> list[Any]:
    """Return the devices that a plugin provider offers, after registering the plugin once a process."""
    if not hasattr(library, "get_ep_devices"):
        raise EngineUnavailable(f"onnxruntime {library.__version__} takes no plugins", device.install)
    name = provider_name(device)

    def offered() -> list[Any]:
        return [found for found in library.get_ep_devices() if found.ep_name == name]

    if not offered():
        try:
            library.register_execution_provider_library(name, _plugin(device).get_library_path())
        # The plugin's own exceptions and ONNX Runtime's have no common base but Exception.
        except Exception as error:
            reason = " ".join(str(error).split())
            raise EngineUnavailable(f"{name} cannot be loaded ({reason})", device.install) from error
    devices = offered()
    if not devices:
        raise EngineUnavailable(f"{name} finds no GPU it can use", "check the driver: nvidia-smi")
    return devices[:1]
