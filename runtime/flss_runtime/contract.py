"""What the graphs of a bundle take and give, and what they have to agree on (docs/bundle-format.md, section 6)."""

from __future__ import annotations

from flss_runtime.engines import Engine
from flss_runtime.errors import BundleError


def check_pair(encoder: Engine, head: Engine, num_classes: int) -> None:
    """Check that two graphs are an encoder and its head.

    Raises:
        BundleError: Names of inputs or outputs, latent size or number of classes do not fit.
    """
    _check_graph("encoder", encoder, {"images"}, {"mean", "std"})
    _check_graph("head", head, {"mean", "std", "noise", "noise_scale"}, {"logits", "choices"})
    _check_size("latent dimensions", encoder.outputs["mean"].shape[-1], head.inputs["mean"].shape[-1])
    _check_size("classes", head.outputs["logits"].shape[-1], num_classes)


def check_gate(gate: Engine, num_classes: int) -> None:
    """Check that a graph is the gate of a classifier of so many classes.

    Raises:
        BundleError: Names of inputs or outputs, or the number of classes, do not fit.
    """
    _check_graph("gate", gate, {"images"}, {"logits"})
    _check_size("classes", gate.outputs["logits"].shape[-1], num_classes)


def _check_graph(role: str, engine: Engine, inputs: set[str], outputs: set[str]) -> None:
    if set(engine.inputs) != inputs or set(engine.outputs) != outputs:
        raise BundleError(
            f"the {role} graph maps {sorted(engine.inputs)} to {sorted(engine.outputs)}; "
            f"expected {sorted(inputs)} to {sorted(outputs)}",
            "export the bundle again with this version of flss-edge",
        )


def _check_size(what: str, first: int | str, second: int | str) -> None:
    if isinstance(first, int) and isinstance(second, int) and first != second:
        raise BundleError(
            f"the parts of the bundle disagree on the number of {what}: {first} and {second}",
            "export the bundle again: its graphs come from different models",
        )
