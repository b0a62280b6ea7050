"""Checkpoints: our own (`.pt`, `.safetensors`, configuration inside) and the released ones. Nothing is unpickled."""

from __future__ import annotations

import hashlib
import io
import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flss_edge.batch_norm import SECOND
from flss_edge.model import FLSS, ModelConfig, Network, build_network
from flss_runtime.atomic import atomic_write
from flss_runtime.errors import CheckpointError, FLSSError

FORMAT = "flss-edge-checkpoint"
FORMAT_VERSION = 1


@dataclass(eq=False)
class Checkpoint:
    """A trained network with what is needed to use it.

    Attributes:
        model: the network, in eval mode on the CPU.
        class_names: K names.
        origin: "flss-edge" or "released-flss".
        training: recipe, data, epoch and accuracies as the trainer recorded them; {} for released checkpoints.
        sha256: of the file it was read from; "" for one that was never written.
    """

    model: Network
    class_names: tuple[str, ...]
    origin: str = "flss-edge"
    training: dict[str, Any] = field(default_factory=dict)
    sha256: str = ""

    def flss(self) -> FLSS:
        """Return the network where it is an FLSS network, which alone can be exported.

        Raises:
            CheckpointError: it is a plain classifier.
        """
        if isinstance(self.model, FLSS):
            return self.model
        recipe = self.training.get("config", {}).get("recipe", "of another kind")
        raise CheckpointError(
            f"this checkpoint holds a plain classifier (recipe {recipe}), which has no samples to vote",
            "Give a checkpoint that was trained with an FLSS recipe: official, paper or plus.",
        )


def save_checkpoint(path: Path, checkpoint: Checkpoint, *, overwrite: bool = True) -> None:
    """Write a checkpoint atomically; the suffix chooses the format, `.pt` or `.safetensors`.

    Raises:
        OutputError: the file cannot be written, or exists and `overwrite` is false.
        CheckpointError: another suffix.
    """
    path = Path(path)
    _check_suffix(path)
    header = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "model": checkpoint.model.config.to_json(),
        "class_names": list(checkpoint.class_names),
        "training": checkpoint.training,
    }
    state = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in checkpoint.model.state_dict().items()
        if not name.startswith(f"{SECOND}.")  # a help in training, no part of the network
    }
    if path.suffix == ".safetensors":
        from safetensors.torch import save

        content = save(state, metadata={FORMAT: json.dumps(header)})
    else:
        content = torch_bytes({**header, "state_dict": state})
    with atomic_write(path, overwrite=overwrite) as temporary:
        temporary.write_bytes(content)


def torch_bytes(value: dict[str, Any]) -> bytes:
    """Return what torch.save writes; the same value gives the same bytes, as no file name goes into them.

    Through memory, because on a full disk torch's own writer raises a RuntimeError that does not say so.
    """
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint of this project or a released FLSS one, without running any code from it.

    Raises:
        CheckpointError: missing, truncated, of an unknown format or version, or keys and shapes that do not fit.
    """
    path = Path(path)
    _check_suffix(path)
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist", "Give the path of a .pt or .safetensors file.")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if content.get("format") == FORMAT:
        return _own(path, content, digest)
    state = _tensors(path, content.get("state_dict", content))
    return _released(path, {key.removeprefix("module."): value for key, value in state.items()}, digest)


def _check_suffix(path: Path) -> None:
    if path.suffix not in (".pt", ".pth", ".safetensors"):
        raise CheckpointError(f"{path.name} ends in {path.suffix!r}", "Name checkpoints .pt or .safetensors.")


def _read_torch(path: Path) -> dict[str, Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch muses about pickle protocols; the answer here is yes or no
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails anywhere in torch's reader, with whatever comes up there
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path.name} cannot be read safely as a checkpoint ({reason[:160]})",
            "It may be truncated or hold pickled code: copy it again, or save its plain state_dict.",
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path.name} holds a {type(content).__name__}", "Save a dictionary of tensors.")
    return content


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(FORMAT, "{}"))
            return {**header, "state_dict": {key: file.get_tensor(key) for key in file.keys()}}
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{path.name} cannot be read as safetensors ({error})", "It may be truncated: copy it again."
        ) from error


def _tensors(path: Path, state: object) -> dict[str, Tensor]:
    if isinstance(state, Mapping) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        return dict(state)
    raise CheckpointError(
        f"{path.name} is neither an flss-edge nor a released FLSS checkpoint",
        "Train one with `flss-edge train`, or give the state_dict of the released FLSS network.",
    )


def _own(path: Path, content: dict[str, Any], digest: str) -> Checkpoint:
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path.name} has checkpoint format {version}; this version reads format {FORMAT_VERSION}",
            "Use the flss-edge version that wrote it, or a newer one.",
        )
    try:
        model = build_network(ModelConfig(**content["model"]))
        names = tuple(str(name) for name in content["class_names"])
        training = dict(content["training"])
    except FLSSError as error:
        raise CheckpointError(f"{path.name}: {error.problem}", error.fix) from error
    except (KeyError, TypeError, ValueError, RuntimeError) as error:  # RuntimeError: no memory for such a width
        raise CheckpointError(f"{path.name} has a damaged header ({error})", "Copy it again.") from error
    if len(names) != model.config.num_classes:
        raise CheckpointError(
            f"{path.name} names {len(names)} classes, but its head has {model.config.num_classes}", "Copy it again."
        )
    _load_state(path, model, _tensors(path, content.get("state_dict")))
    return Checkpoint(model.eval(), names, "flss-edge", training, digest)


def _released(path: Path, state: dict[str, Tensor], digest: str) -> Checkpoint:
    config = _released_config(path, state)
    model = FLSS(config)
    _load_state(path, model, {_renamed(key): _reshaped(key, value) for key, value in state.items()})
    names = _released_names(config.num_classes)
    return Checkpoint(model.eval(), names, "released-flss", {}, digest)


def _released_config(path: Path, state: dict[str, Tensor]) -> ModelConfig:
    heads = sorted(key for key in state if re.fullmatch(r"fc\d_encoder\.weight", key))
    needed = ["encode.conv1.weight", "encode.conv_mu.weight", "encode.conv_logvar.weight"]
    missing = [key for key in needed if key not in state]
    if missing or len(heads) != 1:
        found = ", ".join(sorted(state)[:3]) or "nothing"
        raise CheckpointError(
            f"{path.name} lacks {missing[0] if missing else 'fc1_encoder.weight'}; its keys begin with {found}",
            "Expected the released FLSS layout (module.encode.*, module.fc1_encoder.*) or one of this project.",
        )
    for key, dimensions in (*((key, 4) for key in needed), (heads[0], 2)):
        if state[key].dim() != dimensions:
            raise CheckpointError(
                f"{path.name}: {key} has shape {tuple(state[key].shape)}; expected {dimensions} dimensions",
                "Give the state_dict of the released FLSS network.",
            )
    classes, latent = state[heads[0]].shape
    return ModelConfig(num_classes=classes, width=state[needed[0]].shape[0], latent_dim=latent)


def _renamed(key: str) -> str:
    """Return our name of a released tensor: encode.layer2.0.shortcut.1.bias -> encoder.layer2.0.downsample.1.bias."""
    key = re.sub(r"^encode\.", "encoder.", key)
    key = re.sub(r"^fc\d_encoder\.", "head.0.", key)
    return key.replace(".shortcut.", ".downsample.").replace(".conv_mu.", ".mean.").replace(".conv_logvar.", ".logvar.")


def _reshaped(key: str, value: Tensor) -> Tensor:
    is_head = key in ("encode.conv_mu.weight", "encode.conv_logvar.weight")  # 1x1 convolutions there, linear here
    return value.flatten(1) if is_head else value


def _released_names(count: int) -> tuple[str, ...]:
    from flss_edge.data import CIFAR10_CLASSES

    return CIFAR10_CLASSES if count == len(CIFAR10_CLASSES) else tuple(f"class_{index}" for index in range(count))


def _load_state(path: Path, model: Network, state: Mapping[str, Tensor]) -> None:
    wanted = model.state_dict()
    missing, extra = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    if missing or extra:
        raise CheckpointError(
            f"{path.name} does not fit: {len(missing)} tensors missing (first: {missing[:1]}), "
            f"{len(extra)} unknown (first: {extra[:1]})",
            "Only ResNet-18 FLSS networks can be loaded; check that this is the right file.",
        )
    for name, tensor in wanted.items():
        if tensor.shape != state[name].shape:
            raise CheckpointError(
                f"{path.name}: {name} has shape {tuple(state[name].shape)}; expected {tuple(tensor.shape)}",
                "Check that width, latent size and classes are those of one network.",
            )
        if not torch.isfinite(state[name]).all():
            raise CheckpointError(f"{path.name}: {name} holds NaN or infinity", "Use an earlier checkpoint.")
    model.load_state_dict(state)
