"""The graphs are what docs/bundle-format.md section 6 says, compute what torch computes, and carry nothing else."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from flss_edge.checkpoint import Checkpoint
from flss_edge.model import FLSS, ModelConfig
from flss_export.graphs import GraphSet, build_graphs, fuse_batch_norm
from flss_export.protos import RANDOM_OPERATORS
from flss_export.sampling_graphs import head_graph
from flss_runtime.engines import open_engine
from flss_runtime.errors import CheckFailed

TOLERANCE = 1e-5
FLOAT, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
SCALE = np.array([2], np.float32)


def _values(values):
    return {
        value.name: (
            value.type.tensor_type.elem_type,
            tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim),
        )
        for value in values
    }


def _pixels(batch: int, size: int) -> np.ndarray:
    return np.random.default_rng(batch).random((batch, 3, size, size), dtype=np.float32)


def _normals(batch: int, samples: int, latent_dim: int) -> np.ndarray:
    return np.random.default_rng(samples).standard_normal((batch, samples, latent_dim), dtype=np.float32)


def _literal(head: nn.Module, mean: np.ndarray, std: np.ndarray, noise: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return head(torch.from_numpy(mean[:, None] + SCALE * std[:, None] * noise)).numpy()


def test_inputs_and_outputs_are_the_formats(graphs: GraphSet) -> None:
    expected = {
        "encoder": (
            {"images": (FLOAT, ("B", 3, 16, 16))},
            {"mean": (FLOAT, ("B", 16)), "std": (FLOAT, ("B", 16))},
        ),
        "head": (
            {
                "mean": (FLOAT, ("B", 16)),
                "std": (FLOAT, ("B", 16)),
                "noise": (FLOAT, ("NB", "N", 16)),
                "noise_scale": (FLOAT, (1,)),
            },
            {"logits": (FLOAT, ("B", "N", 5)), "choices": (INT64, ("B", "N"))},
        ),
        "deterministic": (
            {"images": (FLOAT, ("B", 3, 16, 16))},
            {"logits": (FLOAT, ("B", 5)), "choice": (INT64, ("B",))},
        ),
    }
    for role, (inputs, outputs) in expected.items():
        graph = onnx.load_from_string(graphs.graphs[role]).graph
        assert _values(graph.input) == inputs
        assert _values(graph.output) == outputs


def test_graphs_are_valid_self_contained_and_draw_nothing(graphs: GraphSet) -> None:
    for content in graphs.graphs.values():
        proto = onnx.load_from_string(content)
        onnx.checker.check_model(proto, full_check=True)
        onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)
        assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", graphs.opset)]
        assert not {node.op_type for node in proto.graph.node} & RANDOM_OPERATORS
        assert not any(node.op_type.startswith("Random") for node in proto.graph.node)
        assert not any(tensor.external_data for tensor in proto.graph.initializer)
        assert "BatchNormalization" not in {node.op_type for node in proto.graph.node}


def test_the_deterministic_graph_has_no_second_layer_beside_the_mean(graphs: GraphSet) -> None:
    encoder = onnx.load_from_string(graphs.graphs["encoder"]).graph
    deterministic = onnx.load_from_string(graphs.graphs["deterministic"]).graph
    assert any("logvar" in tensor.name for tensor in encoder.initializer)
    assert not any("logvar" in tensor.name for tensor in deterministic.initializer)
    assert "Exp" not in {node.op_type for node in deterministic.node}
    assert sum(node.op_type == "Gemm" for node in deterministic.node) == 3  # mean and the two layers of the head


def test_nothing_of_the_exporting_machine_is_inside(graphs: GraphSet) -> None:
    places = [
        os.getcwd(),
        str(Path(torch.__file__).parents[1]),
        str(Path.home()),
        sys.prefix,
        ".py",
        "pytorch",
        "stack",
    ]
    for content in graphs.graphs.values():
        assert [place for place in places if len(place) > 1 and place.encode() in content] == []
        proto = onnx.load_from_string(content)
        assert not proto.producer_name and not proto.doc_string and not proto.metadata_props
        assert not any(node.metadata_props or node.doc_string for node in proto.graph.node)


@pytest.mark.slow
def test_another_process_writes_the_same_bytes(graphs: GraphSet, checkpoint_file: Path, tmp_path: Path) -> None:
    script = (
        "import sys, hashlib, pathlib\n"
        "from flss_edge.checkpoint import load_checkpoint\n"
        "from flss_export.graphs import build_graphs\n"
        "graphs = build_graphs(load_checkpoint(pathlib.Path(sys.argv[1])).model).graphs\n"
        "print(*(hashlib.sha256(graphs[role]).hexdigest() for role in sorted(graphs)))\n"
    )
    # absolute paths, because it runs in another folder
    path = os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path if entry)
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script, str(checkpoint_file)]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.split() == [hashlib.sha256(graphs.graphs[role]).hexdigest() for role in sorted(graphs.graphs)]


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_encoder_and_baseline_agree_with_torch(
    checkpoint: Checkpoint, graph_files: dict[str, Path], batch: int
) -> None:
    pixels = _pixels(batch, 16)
    with torch.no_grad():
        mean, logvar = checkpoint.model.encoder(torch.from_numpy(pixels))
        logits = checkpoint.model(torch.from_numpy(pixels)).numpy()
    with open_engine(graph_files["encoder"]) as encoder, open_engine(graph_files["deterministic"]) as deterministic:
        latent, plain = encoder.run({"images": pixels}), deterministic.run({"images": pixels})
    np.testing.assert_allclose(latent["mean"], mean.numpy(), atol=TOLERANCE)
    np.testing.assert_allclose(latent["std"], torch.exp(logvar / 2).numpy(), atol=TOLERANCE)
    np.testing.assert_allclose(plain["logits"], logits, atol=TOLERANCE)
    np.testing.assert_array_equal(plain["choice"], plain["logits"].argmax(axis=1))


@pytest.mark.parametrize("samples", [1, 100, 256])
@pytest.mark.parametrize("batch", [1, 2, 7])
def test_head_agrees_with_the_literal_sampling(
    checkpoint: Checkpoint, graph_files: dict[str, Path], batch: int, samples: int
) -> None:
    rng = np.random.default_rng(batch)
    mean = rng.standard_normal((batch, 16), dtype=np.float32)
    std = rng.random((batch, 16), dtype=np.float32)
    with open_engine(graph_files["head"], threads=1) as head:
        for noises in {1, batch}:
            noise = _normals(noises, samples, 16)
            found = head.run({"mean": mean, "std": std, "noise": noise, "noise_scale": SCALE})
            expected = _literal(checkpoint.model.head, mean, std, noise)
            np.testing.assert_allclose(found["logits"], expected, atol=TOLERANCE)
            assert found["choices"].shape == (batch, samples) and found["choices"].dtype == np.int64
            np.testing.assert_array_equal(found["choices"], found["logits"].argmax(axis=2))


def test_without_noise_every_sample_is_the_mean_path(checkpoint: Checkpoint, graph_files: dict[str, Path]) -> None:
    pixels = _pixels(3, 16)
    with (
        open_engine(graph_files["encoder"]) as encoder,
        open_engine(graph_files["head"], threads=1) as head,
        open_engine(graph_files["deterministic"]) as deterministic,
    ):
        latent = encoder.run({"images": pixels})
        still = head.run({**latent, "noise": _normals(3, 9, 16), "noise_scale": np.zeros(1, np.float32)})["logits"]
        plain = deterministic.run({"images": pixels})["logits"]
    np.testing.assert_allclose(still, np.broadcast_to(plain[:, None], still.shape), atol=TOLERANCE)


@pytest.mark.parametrize("hidden", [(), (8,), (8, 6)])
def test_a_tie_goes_to_the_lowest_class(hidden: tuple[int, ...], tmp_path: Path) -> None:
    head = FLSS(ModelConfig(num_classes=4, width=2, hidden=hidden)).head
    for parameter in head.parameters():
        nn.init.zeros_(parameter)
    path = tmp_path / "head.onnx"
    path.write_bytes(head_graph(head).SerializeToString())
    latent = np.ones((2, 16), np.float32)
    with open_engine(path, threads=1) as engine:
        found = engine.run({"mean": latent, "std": latent, "noise": _normals(2, 5, 16), "noise_scale": SCALE})
    assert (found["choices"] == 0).all()


def test_export_prints_nothing_and_leaves_the_model_alone(
    make_model, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = make_model(ModelConfig(num_classes=3, width=2, stem="imagenet", image_size=48), 1).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    content = build_graphs(model).graphs["encoder"]
    assert capfd.readouterr() == ("", "")
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    path = tmp_path / "encoder.onnx"
    path.write_bytes(content)
    pixels = _pixels(3, 48)
    with torch.no_grad():
        mean, _ = model.eval().encoder(torch.from_numpy(pixels))
    with open_engine(path) as encoder:
        np.testing.assert_allclose(encoder.run({"images": pixels})["mean"], mean.numpy(), atol=TOLERANCE)


def test_folded_batch_norms_change_nothing(checkpoint: Checkpoint) -> None:
    fused = fuse_batch_norm(checkpoint.model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    assert sum(isinstance(module, nn.BatchNorm2d) for module in checkpoint.model.modules()) == 20
    pixels = torch.from_numpy(_pixels(4, 16))
    with torch.no_grad():
        torch.testing.assert_close(fused(pixels), checkpoint.model(pixels), atol=TOLERANCE, rtol=0)


def test_a_batch_norm_without_a_convolution_is_refused(make_model) -> None:
    model = make_model(ModelConfig(num_classes=3, width=2), 2)
    model.encoder.bn9 = nn.BatchNorm2d(2)
    with pytest.raises(CheckFailed, match="bn9"):
        fuse_batch_norm(model)


def test_other_backbones_export_as_they_are(make_model, tmp_path: Path) -> None:
    """SiLU and another depth: no operator of the graph is left at ResNet-18's."""
    model = make_model(ModelConfig(num_classes=3, width=4, blocks=(1, 2), activation="silu", image_size=16), 4)
    path = tmp_path / "encoder.onnx"
    path.write_bytes(build_graphs(model).graphs["encoder"])
    pixels = _pixels(3, 16)
    with torch.no_grad():
        mean, logvar = model.encoder(torch.from_numpy(pixels))
    with open_engine(path) as encoder:
        latent = encoder.run({"images": pixels})
    np.testing.assert_allclose(latent["mean"], mean.numpy(), atol=TOLERANCE)
    np.testing.assert_allclose(latent["std"], torch.exp(logvar / 2).numpy(), atol=TOLERANCE)
