"""One tiny checkpoint, its graphs and its bundle, made once: torch's exporter takes seconds."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from flss_edge.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from flss_edge.model import FLSS, ModelConfig
from flss_export import exporter
from flss_export.graphs import GraphSet, build_graphs
from flss_runtime.bundle import Bundle

MakeModel = Callable[[ModelConfig, int], FLSS]


def _make_model(config: ModelConfig, seed: int) -> FLSS:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = FLSS(config)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):  # as after training: the fresh ones are the identity
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.3)
                nn.init.normal_(module.running_mean, std=0.3)
                nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model.eval()


@pytest.fixture(scope="session")
def make_model() -> MakeModel:
    return _make_model


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    config = ModelConfig(num_classes=5, width=4, latent_dim=16, hidden=(12,), image_size=16)
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.pt"
    save_checkpoint(path, Checkpoint(_make_model(config, 0), ("ant", "bee", "cow", "dog", "eel")))
    return load_checkpoint(path)


@pytest.fixture(scope="session")
def linear_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """As `checkpoint`, but with the linear head that logit sampling needs."""
    config = ModelConfig(num_classes=5, width=4, latent_dim=16, image_size=16)
    path = tmp_path_factory.mktemp("checkpoint") / "linear.pt"
    save_checkpoint(path, Checkpoint(_make_model(config, 5), ("ant", "bee", "cow", "dog", "eel")))
    return load_checkpoint(path)


@pytest.fixture(scope="session")
def linear_graphs(linear_checkpoint: Checkpoint) -> GraphSet:
    return build_graphs(linear_checkpoint.model)


@pytest.fixture(scope="session")
def checkpoint_file(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("again") / "tiny.pt"
    save_checkpoint(path, checkpoint)
    return path


@pytest.fixture(scope="session")
def graphs(checkpoint: Checkpoint) -> GraphSet:
    return build_graphs(checkpoint.model)


@pytest.fixture(scope="session")
def graph_files(graphs: GraphSet, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("graphs")
    files = {role: folder / f"{role}.onnx" for role in graphs.graphs}
    for role, path in files.items():
        path.write_bytes(graphs.graphs[role])
    return files


@pytest.fixture(scope="session")
def bundle(checkpoint: Checkpoint, graphs: GraphSet, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    target = tmp_path_factory.mktemp("out") / "tiny.bundle"
    with pytest.MonkeyPatch.context() as patch:  # the graphs are made already
        patch.setattr(exporter, "build_graphs", lambda model: graphs)
        return exporter.export_bundle(checkpoint, target, num_samples=20, seed=3)
