"""`flss-edge inspect`: what a bundle or a checkpoint is, without running it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flss_edge.cli.options import FormatOption, OutputOption, OverwriteOption, resolve_bundle
from flss_edge.cli.output import Document, check_output, emit
from flss_runtime.errors import OutputError
from flss_runtime.sampling import DETERMINISTIC, LATENT, LOGIT

if TYPE_CHECKING:
    from flss_edge.checkpoint import Checkpoint
    from flss_runtime.bundle import Bundle

COLUMNS = {"name": "", "value": "value"}
CHECKPOINT_SUFFIXES = frozenset({".pt", ".pth", ".safetensors"})


def inspect(
    artefact: Annotated[
        Path | None, typer.Argument(help="Bundle (by default the only one here) or checkpoint (needs torch).")
    ] = None,
    form: FormatOption = None,
    output: OutputOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Show what a bundle or a checkpoint is.

    A bundle's digests are verified on the way; nothing is run.
    """
    check_output(form, output, overwrite)
    if artefact is not None and artefact.suffix in CHECKPOINT_SUFFIXES:
        from flss_edge.checkpoint import load_checkpoint

        document = _describe_checkpoint(artefact, load_checkpoint(artefact))
    else:
        from flss_runtime.bundle import load_bundle

        document = _describe_bundle(load_bundle(resolve_bundle(artefact)))
    emit(document, form, output, overwrite)


def _describe_bundle(bundle: Bundle) -> Document:
    manifest = bundle.manifest
    facts: dict[str, Any] = {
        "name": manifest["name"],
        "created": manifest["created"],
        "digest": bundle.digest,
        "input": f"{bundle.input.height}x{bundle.input.width} {bundle.input.layout} {bundle.input.dtype}, "
        f"resize {bundle.input.resize}",
        "classes": _classes(bundle.class_names),
        "latent size": bundle.latent_dim,
        "checkpoint": _origin(manifest["checkpoint"]),
        **({"gate": _origin(manifest["gate_checkpoint"])} if bundle.has_gate else {}),
        "tools": ", ".join(f"{name} {version}" for name, version in manifest["tools"].items()),
        "default policy": f"{bundle.num_samples} samples, noise scale {bundle.noise_scale:g}",
    }
    has_logit = bool(bundle.precisions(LOGIT))
    facts["sampling"] = ", ".join((LATENT, LOGIT, DETERMINISTIC) if has_logit else (LATENT,))
    for key, file in manifest["graphs"].items():
        size = manifest["files"][file]["size"] / 2**20
        facts[f"graph {key}"] = f"{file}, {manifest['precision'][key]}, opset {manifest['opset']}, {size:.2f} MiB"
    facts["reference images"] = "reference.npz" if "reference.npz" in manifest["files"] else "none"
    for entry in bundle.calibrations:
        name = f"calibrated for {entry['mode']} N = {entry['num_samples']}, scale {entry['noise_scale']:g}"
        facts[name] = _thresholds(bundle, entry) + _provenance(entry)
    if not bundle.calibrations:
        facts["calibrated"] = f"no: flss-edge calibrate {bundle.path} --data DATA"
    verdicts = _verdicts(bundle)
    if not verdicts:
        facts["verified"] = f"nothing on this machine: flss-edge prepare {bundle.path} --engine ENGINE"
    return Document(
        command="inspect",
        columns=COLUMNS,
        rows=[*_rows(facts), *(_verified(bundle, verdict) for verdict in verdicts)],
        results={"manifest": manifest, "calibrations": list(bundle.calibrations), "verdicts": verdicts},
        artifact={"bundle": str(bundle.path), "digest": bundle.digest},
    )


def _verdicts(bundle: Bundle) -> list[dict[str, Any]]:
    """Return what `flss-edge prepare` stored of this bundle's engines on this machine, one verdict an engine."""
    from flss_runtime.engine_cache import EngineCache

    manifest = bundle.manifest
    encoders = {
        manifest["files"][file]["sha256"]
        for key, file in manifest["graphs"].items()
        if key.split(".", 1)[0] == "encoder"  # the other graphs' entries hold the same verdicts once more
    }
    try:
        entries = EngineCache().judged()
    except OutputError:  # no home directory, so nothing was prepared
        return []
    found = [entry.verdict() for entry in entries if entry.key.graph in encoders]
    return [verdict for verdict in found if verdict is not None and verdict.get("bundle") == bundle.digest]


def _verified(bundle: Bundle, verdict: dict[str, Any]) -> dict[str, Any]:
    """Return a row for a verdict; several devices may have one for the same engine."""
    name = f"verified on {verdict.get('engine')} in {verdict.get('precision')}"
    try:
        return {"name": name, "value": _told(bundle, verdict)}
    except (AttributeError, KeyError, TypeError, ValueError):  # by another version, or damaged
        return {"name": name, "value": "a verdict that cannot be read: prepare again"}


def _told(bundle: Bundle, verdict: dict[str, Any]) -> str:
    from flss_runtime.logit_gaussian import logit_min_votes

    facts = verdict.get("facts", {})
    parts = [f"{verdict.get('verdict')}: {facts.get('library')} on {facts.get('device')}"]
    for test in verdict.get("flips", ()):
        parts.append(f"{test['flips']} {test['kind']} flips of {test['images']} (at most {test['bound']:.2%})")
    parts.append(f"budget {verdict.get('budget', 0):.2%}")
    entry = bundle.calibration() or {}
    now = entry.get("min_votes"), entry.get("gate", {}).get("min_confidence"), logit_min_votes(bundle)
    if now != (verdict.get("min_votes"), verdict.get("min_confidence"), verdict.get("logit_min_votes")):
        parts.append("under another calibration: prepare again")
    return ", ".join(parts)


def _describe_checkpoint(path: Path, checkpoint: Checkpoint) -> Document:
    config = checkpoint.model.config.to_json()
    parameters = sum(parameter.numel() for parameter in checkpoint.model.parameters())
    facts = {
        "origin": checkpoint.origin,
        "sha256": checkpoint.sha256,
        "parameters": parameters,
        "classes": _classes(checkpoint.class_names),
        **{key: value for key, value in config.items() if key != "num_classes"},
        "recipe": checkpoint.training.get("config", {}).get("recipe", "unknown"),
        **{
            f"training {key}": value for key, value in checkpoint.training.items() if not isinstance(value, dict | list)
        },
    }
    return Document(
        command="inspect",
        columns=COLUMNS,
        rows=_rows(facts),
        results={
            "origin": checkpoint.origin,
            "model": config,
            "parameters": parameters,
            "class_names": list(checkpoint.class_names),
            "training": checkpoint.training,
        },
        artifact={"checkpoint": str(path), "sha256": checkpoint.sha256},
    )


def _rows(facts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"name": name, "value": str(value)} for name, value in facts.items()]


def _classes(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:12])
    return f"{len(names)}: {shown}{', …' if len(names) > 12 else ''}"


def _origin(checkpoint: dict[str, Any]) -> str:
    return f"{checkpoint['origin']}, sha256 {checkpoint['sha256']}"


def _thresholds(bundle: Bundle, entry: dict[str, Any]) -> str:
    votes = f"min_votes {entry['min_votes']}"
    if not bundle.has_gate:
        return votes
    return (
        f"min_confidence {entry['gate']['min_confidence']:.6g}, {votes}"
        if "gate" in entry
        else f"{votes}, no threshold for the gate"
    )


def _provenance(entry: dict[str, Any]) -> str:
    known = [f"{key} {entry[key]}" for key in ("budget", "n", "data") if key in entry]
    known += ["votes kept for the drift monitor"] if "reference" in entry else []
    return f" ({', '.join(known)})" if known else ""
