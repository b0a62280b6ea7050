"""Encoder and head in one graph, and the Gaussian of the logits: what torch computes, in every precision."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from onnx import TensorProto
from torch import nn

from flss_edge.checkpoint import Checkpoint
from flss_edge.model import FLSS, ModelConfig
from flss_export import exporter
from flss_export.graphs import GraphSet
from flss_export.parity import parity
from flss_export.reference import reference_network, reference_outputs
from flss_export.sampling_graphs import add_sampling_graphs, check_sampling, fused_graph
from flss_runtime.bundle import Bundle
from flss_runtime.engines import Engine, open_engine
from flss_runtime.equivalence import verify_bundle
from flss_runtime.errors import CheckFailed, UsageError
from flss_runtime.images import to_nchw
from flss_runtime.noise import SeededNoise

from .test_precision import pictures

SCALE = 2.0
TOLERANCE = 1e-5
Tensors = dict[str, npt.NDArray[np.float32]]


@pytest.fixture(scope="module")
def sampled(linear_checkpoint: Checkpoint, linear_graphs: GraphSet, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle with every graph in every precision."""
    with pytest.MonkeyPatch.context() as patch:  # the float32 graphs are made already
        patch.setattr(exporter, "build_graphs", lambda model: linear_graphs)
        return exporter.export_bundle(
            linear_checkpoint,
            tmp_path_factory.mktemp("out") / "sampled.bundle",
            data=pictures(60),
            precisions=("fp32", "fp16", "int8"),
            quantization=pictures(40, seed=1),
            num_samples=20,
            seed=3,
            sampling="logit",
            fused=True,
        )


def run(engine: Engine, images: npt.NDArray[np.uint8], noise: npt.NDArray[np.float32]) -> Tensors:
    drawn = {"noise": noise, "noise_scale": np.array([SCALE], np.float32)}
    return engine.run({"images": to_nchw(images), **drawn})


def written(graph: bytes, folder: Path) -> Path:
    path = folder / "graph.onnx"
    path.write_bytes(graph)
    return path


def test_every_encoder_gets_both(sampled: Bundle) -> None:
    for role in ("fused", "logit"):
        assert sampled.precisions(role) == ("fp32", "fp16", "int8")
        assert sampled.graph(role).name == f"{role}.onnx" and sampled.graph(role, "int8").name == f"{role}.int8.onnx"
    found = sampled.manifest["parity"]
    assert found["passed"] and found["tensor_differences"]["covariance"] < TOLERANCE
    assert found["fused"]["passed"] and found["fused"]["tensor_differences"].keys() == {"logits", "deterministic"}
    assert {"fp16 in one graph", "int8 in one graph"} < set(found["reduced"])
    assert 1e-5 < found["reduced"]["int8"]["tensor_differences"]["covariance"] < 0.2


def test_inputs_and_outputs_are_the_formats(sampled: Bundle) -> None:
    images, logits = ("B", 3, 16, 16), ("B", "N", 5)
    expected: Mapping[str, tuple[dict[str, tuple[int | str, ...]], dict[str, tuple[int | str, ...]]]] = {
        "fused": (
            {"images": images, "noise": ("NB", "N", 16), "noise_scale": (1,)},
            {"logits": logits, "choices": ("B", "N"), "mean_logits": ("B", 5)},
        ),
        "logit": ({"images": images}, {"mean_logits": ("B", 5), "covariance": ("B", 5, 5)}),
    }
    for role, (inputs, outputs) in expected.items():
        for precision in sampled.precisions(role):
            proto = onnx.load(sampled.graph(role, precision))
            onnx.checker.check_model(proto, full_check=True)
            assert not proto.producer_name and not proto.doc_string and not proto.metadata_props
            with open_engine(sampled.graph(role, precision), threads=1) as engine:
                assert {name: spec.shape for name, spec in engine.inputs.items()} == inputs
                assert {name: spec.shape for name, spec in engine.outputs.items()} == outputs
                assert {spec.dtype for spec in engine.inputs.values()} == {"float32"}


@pytest.mark.parametrize("samples", [1, 100])
@pytest.mark.parametrize("batch", [1, 3])
def test_fused_gives_the_literal_sampling(
    sampled: Bundle, linear_checkpoint: Checkpoint, batch: int, samples: int
) -> None:
    images = pictures(batch, seed=5).images
    with open_engine(sampled.graph("fused"), threads=1) as fused:
        for noises in {1, batch}:
            noise = np.array(SeededNoise(noises).take(noises, samples, 16))
            found = run(fused, images, noise)
            expected = reference_outputs(reference_network(linear_checkpoint.flss()), images, noise, SCALE)
            np.testing.assert_allclose(found["logits"], expected["logits"], atol=TOLERANCE)
            np.testing.assert_allclose(found["mean_logits"], expected["deterministic"], atol=TOLERANCE)
            np.testing.assert_array_equal(found["choices"], found["logits"].argmax(axis=2))


@pytest.mark.parametrize("hidden", [(8,), (8, 6)])
def test_fused_takes_every_head(sampled: Bundle, make_model, hidden: tuple[int, ...], tmp_path: Path) -> None:
    head = make_model(ModelConfig(num_classes=4, width=4, latent_dim=16, hidden=hidden, image_size=16), 8).head
    images, noise = pictures(3, seed=6).images, SeededNoise(0).take(3, 9, 16)
    path = written(fused_graph(sampled.graph("encoder").read_bytes(), head), tmp_path)
    with open_engine(path, threads=1) as fused, open_engine(sampled.graph("encoder"), threads=1) as encoder:
        found, latent = run(fused, images, noise), encoder.run({"images": to_nchw(images)})
    with torch.no_grad():
        latents = latent["mean"][:, None] + np.float32(SCALE) * latent["std"][:, None] * noise
        logits, still = head(torch.from_numpy(latents)).numpy(), head(torch.from_numpy(latent["mean"])).numpy()
    np.testing.assert_allclose(found["logits"], logits, atol=TOLERANCE)
    np.testing.assert_allclose(found["mean_logits"], still, atol=TOLERANCE)


@pytest.mark.parametrize("batch", [1, 3])
def test_logit_gives_the_gaussian(sampled: Bundle, linear_checkpoint: Checkpoint, batch: int) -> None:
    network, images = reference_network(linear_checkpoint.flss()), pictures(batch, seed=7).images
    with open_engine(sampled.graph("logit"), threads=1) as logit:
        found = logit.run({"images": to_nchw(images)})
    with torch.no_grad():
        mean, logvar = network.encoder(torch.from_numpy(to_nchw(images)))
        weight = network.head[0].weight
        covariance = torch.stack([weight @ torch.diag(each) @ weight.T for each in torch.exp(logvar)])
        mean_logits = network.head(mean)
    np.testing.assert_allclose(found["mean_logits"], mean_logits.numpy(), atol=TOLERANCE)
    np.testing.assert_allclose(found["covariance"], covariance.numpy(), rtol=TOLERANCE, atol=TOLERANCE)


def test_the_gaussian_is_the_samples_own(sampled: Bundle) -> None:
    """20,000 samples of the fused graph have the logit graph's mean and covariance times the noise scale's square."""
    images, noise = pictures(1, seed=8).images, SeededNoise(2).take(1, 20_000, 16)
    with open_engine(sampled.graph("fused"), threads=1) as fused, open_engine(sampled.graph("logit")) as logit:
        logits = run(fused, images, noise)["logits"][0].astype(np.float64)
        gaussian = logit.run({"images": to_nchw(images)})
    covariance = SCALE**2 * gaussian["covariance"][0]
    error = np.sqrt(np.diag(covariance) / len(logits))
    assert (np.abs(logits.mean(axis=0) - gaussian["mean_logits"][0]) < 5 * error).all()
    spread = np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)) + covariance**2) / np.sqrt(len(logits))
    assert (np.abs(np.cov(logits.T) - covariance) < 5 * spread).all()
    assert (np.abs(np.cov(logits.T) - 1.2 * covariance) > 5 * spread).any()  # the bound can tell


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_reduced_graph_is_its_encoder_and_the_float32_head(sampled: Bundle, precision: str) -> None:
    images, noise = pictures(8, seed=9).images, SeededNoise(0).take(8, 20, 16)
    scale = np.array([SCALE], np.float32)
    paths = sampled.graph("encoder", precision), sampled.graph("head"), sampled.graph("fused", precision)
    engines = [open_engine(path, threads=1) for path in paths]
    latent = engines[0].run({"images": to_nchw(images)})
    two = engines[1].run({**latent, "noise": noise, "noise_scale": scale})
    one = run(engines[2], images, noise)
    np.testing.assert_allclose(one["logits"], two["logits"], atol=1e-4)
    proto = onnx.load(sampled.graph("fused", precision))
    assert {tensor.data_type for tensor in proto.graph.initializer if tensor.name == "weight0"} == {TensorProto.FLOAT}
    assert engines[2].precision() == engines[0].precision()  # ONNX Runtime's CPU provider runs fp16 in fp32


def test_few_nodes_follow_the_encoder(sampled: Bundle) -> None:
    """Each costs some microseconds at batch 1; engines fuse the transposition into the product behind it."""
    nodes = {role: len(onnx.load(sampled.graph(role)).graph.node) for role in ("encoder", "fused", "logit")}
    assert nodes["fused"] - nodes["encoder"] == 9 and nodes["logit"] - nodes["encoder"] == 5


def test_exports_without_them_are_as_before(bundle: Bundle) -> None:
    assert set(bundle.manifest["graphs"]) == {"encoder", "head", "deterministic"}
    assert "fused" not in bundle.manifest["parity"]


def test_what_cannot_be_sampled_so_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="1 hidden layer, so its logits are not Gaussian") as caught:
        exporter.export_bundle(checkpoint, tmp_path / "a.bundle", sampling="logit")
    assert caught.value.exit_code == 2 and "latent" in caught.value.fix
    with pytest.raises(UsageError, match="33 classes; logit sampling takes at most 32"):
        check_sampling(FLSS(ModelConfig(num_classes=33, width=2)).head, "logit")
    check_sampling(FLSS(ModelConfig(num_classes=32, width=2)).head, "logit")
    for sampling in ("deterministic", "logits"):
        with pytest.raises(UsageError, match=f"nothing to export for sampling '{sampling}'"):
            check_sampling(checkpoint.flss().head, sampling)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("role", ["fused", "logit"])
def test_a_graph_of_another_head_leaves_nothing_behind(
    linear_checkpoint: Checkpoint, linear_graphs: GraphSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, role: str
) -> None:
    other = reference_network(linear_checkpoint.flss()).head
    with torch.no_grad():
        other[0].weight[1] *= 1.001

    def swapped(graphs: dict[str, bytes], head: nn.Sequential, **options: object) -> dict[str, bytes]:
        wrong = add_sampling_graphs(graphs, other, sampling="logit", fused=True)
        return {**graphs, role: wrong[role]}

    monkeypatch.setattr(exporter, "build_graphs", lambda model: linear_graphs)
    monkeypatch.setattr(exporter, "add_sampling_graphs", swapped)
    tensor = {"fused": "logits", "logit": "covariance"}[role]
    with pytest.raises(CheckFailed, match=f"{tensor} differs"):
        exporter.export_bundle(linear_checkpoint, tmp_path / "a.bundle", num_samples=20)
    assert list(tmp_path.iterdir()) == []


def test_parity_of_files_takes_them(sampled: Bundle, linear_checkpoint: Checkpoint) -> None:
    files = {role: sampled.graph(role) for role in ("encoder", "head", "logit")}
    images = pictures(9, seed=10).images
    found = parity(linear_checkpoint, files, images, num_samples=10)
    assert found.passed and {"mean_logits", "covariance"} < found.tensor_differences.keys()
    assert parity(linear_checkpoint, {"fused": sampled.graph("fused")}, images, num_samples=10).passed


def test_the_bundle_is_verified_with_them(sampled: Bundle) -> None:
    report = verify_bundle(sampled, budget=0.05, threads=1)
    assert report.passed, report.failures
    assert report.facts["precision"] == dict.fromkeys(("encoder", "head", "fused", "logit"), "fp32")
    reduced = verify_bundle(sampled, precision="int8", budget=0.2, threads=1)
    assert reduced.logit is not None and reduced.logit.passed and reduced.facts["graphs"]["logit"] == "int8"
