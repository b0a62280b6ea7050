"""Shapes, parameter counts, and the released architecture as an independent reference."""

from pathlib import Path

import numpy as np
import pytest
import torch

from flss_edge.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from flss_edge.model import FLSS, Classifier, ModelConfig, build_network, sample_latents
from flss_runtime.errors import CheckpointError, UsageError

from .released import ReleasedVAE, random_released


def count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_parameter_counts_of_the_paper() -> None:
    assert count(FLSS(ModelConfig())) == 11_699_274
    assert count(FLSS(ModelConfig(num_classes=100))) == 11_745_444
    assert count(ReleasedVAE()) == 11_699_274
    assert len(ReleasedVAE().state_dict()) == 126


@pytest.mark.parametrize(
    ("config", "size"),
    [
        (ModelConfig(width=4, hidden=(16, 12), num_classes=7), 32),
        (ModelConfig(width=4, latent_dim=20), 48),
        (ModelConfig(width=4, stem="imagenet", image_size=224, num_classes=3), 224),
    ],
)
def test_options_shape_the_network(config: ModelConfig, size: int) -> None:
    model = FLSS(config).eval()
    mean, logvar = model.encoder(torch.rand(2, 3, size, size))
    assert mean.shape == logvar.shape == (2, config.features)
    assert model(torch.rand(2, 3, size, size)).shape == (2, config.num_classes)
    assert model.head(torch.rand(2, 5, config.features)).shape == (2, 5, config.num_classes)
    assert sum(isinstance(layer, torch.nn.Linear) for layer in model.head) == len(config.hidden) + 1


def test_parameter_counts_of_the_baselines() -> None:
    """ResNet-18 without the latent heads; ResNet-20 and ResNet-110 as published, with convolutions in the shortcuts."""
    assert count(build_network(ModelConfig(network="classifier"))) == 11_168_832 + 5_130
    resnet20 = build_network(ModelConfig(network="classifier", blocks=(3, 3, 3), width=16))
    shortcuts = 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64  # the parameter-free shortcuts of He et al. have none
    assert count(resnet20) == 269_722 + shortcuts
    resnet110 = build_network(ModelConfig(network="classifier", blocks=(18, 18, 18), width=16))
    assert count(resnet110) == 1_727_962 + shortcuts


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_backbone_options(activation: str) -> None:
    config = ModelConfig(width=4, blocks=(1, 2), activation=activation, num_classes=5)
    assert config.features == 8
    model = build_network(config).eval()
    layers = [type(layer).__name__ for layer in model.modules()]
    wanted, other = ("SiLU", "ReLU") if activation == "silu" else ("ReLU", "SiLU")
    assert layers.count(wanted) == 1 + 3  # the stem's and one object a block
    assert other not in layers
    images = torch.rand(2, 3, 32, 32, requires_grad=True)
    model(images).sum().backward()
    assert images.grad is not None and bool(images.grad.abs().sum() > 0)


def test_checkpoints_of_baselines_load_and_have_no_samples(tmp_path: Path) -> None:
    config = ModelConfig(width=4, network="classifier", blocks=(1, 1), weight_noise=True, num_classes=3)
    training = {"config": {"recipe": "pni"}}
    save_checkpoint(tmp_path / "a.pt", Checkpoint(build_network(config), ("a", "b", "c"), training=training))
    checkpoint = load_checkpoint(tmp_path / "a.pt")
    assert isinstance(checkpoint.model, Classifier)
    assert checkpoint.model.config == config
    images = torch.rand(2, 3, 32, 32)
    assert not torch.equal(checkpoint.model(images), checkpoint.model(images))  # the noise is part of the network
    with pytest.raises(CheckpointError, match=r"plain classifier \(recipe pni\)"):
        checkpoint.flss()


@pytest.mark.parametrize(
    "bad",
    [
        {"width": 0},
        {"num_classes": 1},
        {"stem": "vit"},
        {"hidden": (0,)},
        {"blocks": ()},
        {"blocks": (2, 1000)},
        {"activation": "gelu"},
        {"network": "vae"},
        {"network": "classifier", "hidden": (8,)},
        {"weight_noise": True},
    ],
)
def test_impossible_networks_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        ModelConfig(**bad)  # type: ignore[arg-type]


@pytest.mark.parametrize(("wrapped", "prefix"), [(False, "module."), (True, "module."), (False, "")])
def test_released_layout_imports_and_agrees(tmp_path: Path, wrapped: bool, prefix: str) -> None:
    """Random weights in the released layout, pooling after the 1x1 convolutions, within 1e-5 of the imported model."""
    released = random_released(width=16, latent=40, classes=10)
    state = {prefix + key: value for key, value in released.state_dict().items()}
    torch.save({"state_dict": state} if wrapped else state, tmp_path / "FLSS.pt")
    checkpoint = load_checkpoint(tmp_path / "FLSS.pt")
    assert checkpoint.origin == "released-flss"
    images, noise = torch.rand(8, 3, 32, 32), torch.randn(8, 40)
    with torch.no_grad():
        mean, logvar = checkpoint.model.encoder(images)
        released_mean, released_logvar = released.encode(images)
        torch.testing.assert_close(mean, released_mean, rtol=0, atol=1e-5)
        torch.testing.assert_close(logvar, released_logvar, rtol=0, atol=1e-5)
        ours = checkpoint.model.head(sample_latents(mean, logvar, noise))
        torch.testing.assert_close(ours, released(images, noise), rtol=0, atol=1e-5)


def test_full_width_released_layout_imports_and_agrees(tmp_path: Path) -> None:
    released = random_released(classes=100)
    torch.save({f"module.{key}": value for key, value in released.state_dict().items()}, tmp_path / "FLSS.pt")
    model = load_checkpoint(tmp_path / "FLSS.pt").model
    images = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(images), released(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_checkpoints_round_trip(tmp_path: Path, suffix: str) -> None:
    model = FLSS(ModelConfig(width=4, hidden=(8,), num_classes=3)).eval()
    path = tmp_path / f"model{suffix}"
    save_checkpoint(path, Checkpoint(model, ("a", "b", "c"), training={"epoch": 2}))
    loaded = load_checkpoint(path)
    assert loaded.class_names == ("a", "b", "c")
    assert loaded.training == {"epoch": 2}
    assert loaded.model.config == model.config
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[key], value)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    import pickle

    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (str(tmp_path / "ran"),))  # type: ignore[return-value]

    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"state_dict": Payload()}))
    with pytest.raises(CheckpointError, match="cannot be read safely"):
        load_checkpoint(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


def test_keys_and_shapes_that_do_not_fit_are_named(tmp_path: Path) -> None:
    state = {f"module.{key}": value for key, value in random_released(width=4, latent=8).state_dict().items()}
    path = tmp_path / "FLSS.pt"
    del state["module.encode.layer3.1.bn2.weight"]
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=r"layer3\.1\.bn2\.weight"):
        load_checkpoint(path)
    state["module.encode.layer3.1.bn2.weight"] = torch.ones(5)
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=r"has shape \(5,\); expected \(16,\)"):
        load_checkpoint(path)
    state["module.encode.layer3.1.bn2.weight"] = torch.ones(16)
    for key, value in (("fc1_encoder.weight", torch.ones(8)), ("encode.conv1.weight", torch.ones(()))):
        torch.save({**state, f"module.{key}": value}, path)
        with pytest.raises(CheckpointError, match=r"expected . dimensions"):
            load_checkpoint(path)
    torch.save({"linear.weight": torch.ones(3)}, path)
    with pytest.raises(CheckpointError, match="released FLSS layout"):
        load_checkpoint(path)


def test_damaged_checkpoints_are_refused_whatever_is_wrong_in_them(tmp_path: Path) -> None:
    model = FLSS(ModelConfig(width=4, num_classes=3))
    names = ("a", "b", "c")
    save_checkpoint(tmp_path / "good.pt", Checkpoint(model, names))
    content = torch.load(tmp_path / "good.pt", weights_only=True)
    header = content["model"]
    path = tmp_path / "bad.pt"
    for change in (
        {"format_version": 2},
        {"state_dict": [1]},
        {"state_dict": dict.fromkeys(content["state_dict"], 1)},
        {"training": None},
        {"class_names": names[:2]},
        {"model": {**header, "width": 10**7}},
        {"model": {**header, "depth": 3}},
        {"model": {**header, "num_classes": "3"}},
    ):
        torch.save({**content, **change}, path)
        with pytest.raises(CheckpointError):
            load_checkpoint(path)
    torch.save({1: torch.ones(2)}, path)
    with pytest.raises(CheckpointError, match="neither"):
        load_checkpoint(path)
    torch.save(content["state_dict"], tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    random = np.random.default_rng(0)
    for name in ("good.pt", "old.pt"):
        whole = (tmp_path / name).read_bytes()
        for length in random.integers(0, len(whole), 15):
            path.write_bytes(whole[:length])
            with pytest.raises(CheckpointError):
                load_checkpoint(path)
