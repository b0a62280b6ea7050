"""Which checkpoints may stand together in a cascade: the gate has to answer the question that the vote answers."""

from __future__ import annotations

from flss_edge.checkpoint import Checkpoint
from flss_edge.model import Classifier
from flss_runtime.errors import CheckpointError


def gate_network(gate: Checkpoint, voting: Checkpoint) -> Classifier:
    """Return the network of a gate that fits the checkpoint that votes.

    Raises:
        CheckpointError: The gate is no plain classifier, draws weight noise, or has other classes or another size.
    """
    network = gate.model
    plain = "Give a plain classifier as the gate, for example one trained with --recipe ccat."
    if not isinstance(network, Classifier):
        raise CheckpointError("the gate's checkpoint holds an FLSS network, which has samples to vote", plain)
    if network.config.weight_noise:
        raise CheckpointError(
            "the gate's checkpoint draws noise for its weights, so its confidence differs from call to call",
            plain,
        )
    if gate.class_names != voting.class_names:
        raise CheckpointError(
            f"the gate knows {_names(gate.class_names)}, the network that votes {_names(voting.class_names)}",
            "Train both on the same classes, in the same order.",
        )
    sizes = network.config.image_size, voting.model.config.image_size
    if sizes[0] != sizes[1]:
        raise CheckpointError(
            f"the gate takes images of {sizes[0]} pixels a side, the network that votes {sizes[1]}",
            "Train both at the same image size.",
        )
    return network


def _names(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:5])
    return f"{len(names)} classes ({shown}{', …' if len(names) > 5 else ''})"
