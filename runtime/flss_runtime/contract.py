"""What the graphs of a bundle take and give, and what they have to agree on (docs/bundle-format.md, section 6)."""

from __future__ import annotations

from collections.abc import Collection

from flss_runtime.engines import Engine
from flss_runtime.errors import BundleError

_TENSORS = {  # role -> inputs, outputs
    "encoder": ({"images"}, {"mean", "std"}),
    "head": ({"mean", "std", "noise", "noise_scale"}, {"logits", "choices"}),
    "gate": ({"images"}, {"logits"}),
    "fused": ({"images", "noise", "noise_scale"}, {"logits", "choices", "mean_logits"}),
    "logit": ({"images"}, {"mean_logits", "covariance"}),
}


def check_pair(encoder: Engine, head: Engine, num_classes: int) -> None:
    """Check that two graphs are an encoder and its head.

    Raises:
        BundleError: Names of inputs or outputs, types, latent size or number of classes do not fit.
    """
    _check_tensors("encoder", encoder)
    _check_tensors("head", head)
    _check_size("latent dimensions", encoder.outputs["mean"].shape[-1], head.inputs["mean"].shape[-1])
    _check_size("classes", head.outputs["logits"].shape[-1], num_classes)


def check_gate(gate: Engine, num_classes: int) -> None:
    """Check that a graph is the gate of a classifier of so many classes.

    Raises:
        BundleError: Names of inputs or outputs, types, or the number of classes, do not fit.
    """
    _check_tensors("gate", gate)
    _check_size("classes", gate.outputs["logits"].shape[-1], num_classes)


def check_fused(fused: Engine, latent_dim: int, num_classes: int) -> None:
    """Check that a graph is an encoder and its head in one.

    Raises:
        BundleError: Names of inputs or outputs, types, latent size or number of classes do not fit.
    """
    _check_tensors("fused", fused)
    _check_size("latent dimensions", fused.inputs["noise"].shape[-1], latent_dim)
    for output in ("logits", "mean_logits"):
        _check_size("classes", fused.outputs[output].shape[-1], num_classes)


def check_logit(logit: Engine, num_classes: int) -> None:
    """Check that a graph gives the Gaussian of so many logits.

    Raises:
        BundleError: Names of inputs or outputs, types, or the number of classes, do not fit.
    """
    _check_tensors("logit", logit)
    for size in (logit.outputs["mean_logits"].shape[-1], *logit.outputs["covariance"].shape[1:]):
        _check_size("classes", size, num_classes)


def check_names(role: str, inputs: Collection[str], outputs: Collection[str]) -> None:
    """Check what a graph of a role calls its tensors.

    Args:
        role: "encoder", "head", "gate", "fused" or "logit".
        inputs: Names of what it takes.
        outputs: Names of what it gives.

    Raises:
        BundleError: A graph of this role has others.
    """
    expected = _TENSORS[role]
    if (set(inputs), set(outputs)) != expected:
        raise BundleError(
            f"the {role} graph maps {sorted(inputs)} to {sorted(outputs)}; "
            f"expected {sorted(expected[0])} to {sorted(expected[1])}",
            "export the bundle again with this version of flss-edge",
        )


def _check_tensors(role: str, graph: Engine) -> None:
    check_names(role, graph.inputs, graph.outputs)
    for name, found in graph.outputs.items():
        expected = "int64" if name == "choices" else "float32"
        if found.dtype != expected:
            raise BundleError(
                f"the {role} graph gives {name} in {found.dtype}; expected {expected}",
                "export the bundle again with this version of flss-edge",
            )


def _check_size(what: str, first: int | str, second: int | str) -> None:
    if isinstance(first, int) and isinstance(second, int) and first != second:
        raise BundleError(
            f"the parts of the bundle disagree on the number of {what}: {first} and {second}",
            "export the bundle again: its graphs come from different models",
        )
