"""The exported artefact: a directory that is verified before anything in it is used (docs/bundle-format.md)."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from flss_runtime.atomic import atomic_directory, atomic_write, one_writer
from flss_runtime.decision import SmoothingPolicy
from flss_runtime.errors import BundleError, EngineUnavailable, UncalibratedError, UsageError
from flss_runtime.images import InputSpec
from flss_runtime.integrity import (
    CHECKPOINT_SUFFIXES,
    bundle_directory,
    check_file,
    file_inside,
    refuse_unlisted,
    sha256_file,
)
from flss_runtime.manifest import (
    GATE,
    MANIFEST_NAME,
    POLICY_NAME,
    PRECISIONS,
    ROLES,
    check_calibration,
    check_manifest,
    check_name,
    check_policy,
    has_gate,
    policy_digest,
    version_for,
)
from flss_runtime.sampling import LATENT, check_sampling
from flss_runtime.strict_json import Json, file_json, read_json

_OPTIONS = {"fused": " --fused", "logit": " --sampling logit", "gate": " --gate GATE"}


@dataclass(frozen=True)
class Bundle:
    """A verified bundle.

    Attributes:
        path: The directory.
        digest: SHA-256 of manifest.json; it covers every file but policy.json.
        input: What the encoder takes.
        class_names: K names; the index is the class number.
        latent_dim: D.
        num_classes: K.
        num_samples: The policy's default N.
        noise_scale: The policy's default factor on the standard deviation.
        manifest: manifest.json as read.
        calibrations: The entries of policy.json (docs/bundle-format.md, section 5).
    """

    path: Path
    digest: str
    input: InputSpec
    class_names: tuple[str, ...]
    latent_dim: int
    num_classes: int
    num_samples: int
    noise_scale: float
    manifest: Json = field(repr=False)
    calibrations: tuple[Json, ...] = field(repr=False)

    def file(self, name: str) -> Path | None:
        """Return the place of a listed file, or None where the bundle has none of that name."""
        return self.path / name if name in self.manifest["files"] else None

    @property
    def has_gate(self) -> bool:
        """Whether this is a cascade: a gate decides first, and only what it is not sure of is put to the vote."""
        return has_gate(self.manifest)

    def graph(self, role: str, precision: str = "fp32") -> Path:
        """Return the ONNX graph of a role.

        Args:
            role: "encoder", "head", "deterministic", "gate", "fused" or "logit".
            precision: "fp32", "fp16" or "int8".

        Raises:
            BundleError: The bundle has no graph of that role.
            EngineUnavailable: It has, but not in that precision.
            UsageError: There is no such precision.
        """
        available: dict[str, Path] = {
            self.manifest["precision"][key]: self.path / name
            for key, name in self.manifest["graphs"].items()
            if _role(key) == role
        }
        if role not in ROLES or not available:
            fix = f"export it too: flss-edge export CHECKPOINT{_OPTIONS.get(role, '')}"
            raise BundleError(f"{self.path} has no {role!r} graph", fix)
        if precision not in PRECISIONS:
            raise UsageError(f"there is no precision {precision!r}", f"choose one of: {', '.join(PRECISIONS)}")
        if precision not in available:
            problem = f"{self.path} has the {role} in {', '.join(sorted(available))}, not in {precision}"
            fix = f"ask for one that is there, or export it too: flss-edge export CHECKPOINT --precision {precision}"
            raise EngineUnavailable(problem, fix)
        return available[precision]

    def precisions(self, role: str = "encoder") -> tuple[str, ...]:
        """Return the precisions that the bundle has a role in, the widest first; the encoder's are the network's."""
        graphs = self.manifest["precision"]
        return tuple(each for each in PRECISIONS if each in {graphs[key] for key in graphs if _role(key) == role})

    def calibration(self, num_samples: int | None = None, sampling: str = LATENT) -> Json | None:
        """Return the calibration entry for N (default: the policy's) at the policy's noise scale, or None.

        An entry of another sampling is none, and one without threshold for the gate is none for a cascade.
        """
        wanted = self.num_samples if num_samples is None else num_samples
        for entry in self.calibrations:
            if (entry["num_samples"], entry["noise_scale"], entry["mode"]) == (wanted, self.noise_scale, sampling):
                return entry if GATE in entry or not self.has_gate else None
        return None

    def policy(self, num_samples: int | None = None, sampling: str = LATENT) -> SmoothingPolicy:
        """Return the policy that was calibrated for N samples (default: the policy's) of this sampling.

        Raises:
            UncalibratedError: There is no threshold for this N and sampling, or none for the gate; a guess would break
                the false-reject budget.
            UsageError: N < 1, or there is no such sampling.
        """
        check_sampling(sampling)
        wanted = self.num_samples if num_samples is None else num_samples
        bare = SmoothingPolicy(wanted, self.noise_scale, 0)
        entry = self.calibration(wanted, sampling)
        if entry is None:
            have = ", ".join(map(self._described, self.calibrations)) or "none"
            kind = "" if sampling == LATENT else f"{sampling} sampling with "
            problem = f"{self.path} is not calibrated for {kind}N = {wanted} at noise scale {self.noise_scale}"
            option = "" if wanted == self.num_samples else f" -n {wanted}"
            option += "" if sampling == LATENT else f" --sampling {sampling}"
            fix = f"flss-edge calibrate {self.path} --data DATA --budget 0.10{option}"
            raise UncalibratedError(f"{problem} (it has {have})", fix)
        min_confidence = float(entry[GATE]["min_confidence"]) if self.has_gate else None
        return SmoothingPolicy(bare.num_samples, bare.noise_scale, entry["min_votes"], min_confidence)

    def _described(self, entry: Json) -> str:
        bare = " without its gate" if self.has_gate and GATE not in entry else ""
        kind = "" if entry["mode"] == LATENT else f"{entry['mode']} "
        return f"{kind}N = {entry['num_samples']} at scale {entry['noise_scale']}{bare}"


def load_bundle(path: str | Path) -> Bundle:
    """Open a bundle and verify every file in it.

    Args:
        path: The bundle's directory.

    Raises:
        BundleError: Missing, not a bundle, of another format version, incomplete, altered, or with a name or link
            that leaves the directory; the message names the file.
    """
    root = bundle_directory(Path(path))
    manifest, raw = read_json(file_inside(root, MANIFEST_NAME))
    check_manifest(manifest)
    files = manifest["files"]
    refuse_unlisted(root, files)
    for name, expected in files.items():
        check_file(file_inside(root, name), expected["sha256"], expected["size"])
    digest = hashlib.sha256(raw).hexdigest()
    policy, _ = read_json(file_inside(root, POLICY_NAME))
    check_policy(policy, digest, manifest["format_version"])
    return Bundle(
        path=Path(path),
        digest=digest,
        input=InputSpec.from_json(manifest["input"]),
        class_names=tuple(manifest["class_names"]),
        latent_dim=manifest["latent_dim"],
        num_classes=manifest["num_classes"],
        num_samples=policy["num_samples"],
        noise_scale=float(policy["noise_scale"]),
        manifest=manifest,
        calibrations=tuple(policy["calibrations"]),
    )


def write_bundle(
    target: str | Path,
    manifest_fields: Mapping[str, Any],
    policy_fields: Mapping[str, Any],
    files: Mapping[str, bytes | Path],
    overwrite: bool = False,
) -> Bundle:
    """Write a bundle that appears complete and verified, or not at all.

    Args:
        target: The directory to make.
        manifest_fields: The keys of manifest.json but `format_version`, `files` and (if absent: now) `created`.
        policy_fields: `num_samples`, `noise_scale` and optionally `calibrations`.
        files: File name in the bundle -> its content, or a file to copy.
        overwrite: Whether an existing bundle may be replaced.

    Returns:
        The bundle as a reader sees it.

    Raises:
        BundleError: The fields do not make a valid bundle; nothing was replaced.
        OutputError: `target` exists or cannot be written.
    """
    with atomic_directory(target, overwrite) as folder:
        table = {check_name(name): _place(folder / name, content) for name, content in files.items()}
        created = {"created": utc_now()}
        version = version_for(manifest_fields)
        manifest = {"format_version": version, **created, **manifest_fields, "files": table}
        raw = file_json(manifest)
        (folder / MANIFEST_NAME).write_bytes(raw)
        policy = {"calibrations": [], **policy_fields}
        (folder / POLICY_NAME).write_bytes(_sealed_policy(policy, hashlib.sha256(raw).hexdigest(), version))
        load_bundle(folder)
    return load_bundle(target)


def store_calibration(bundle: Bundle, entry: Mapping[str, Any]) -> Bundle:
    """Add a calibration to the policy on disk, in place of one for the same (num_samples, noise_scale, mode).

    Args:
        bundle: The bundle that was calibrated; nothing is written if its directory holds another one by now.
        entry: As `calibration.calibrate` makes it.

    Returns:
        The bundle, loaded again.

    Raises:
        BundleError: The entry is impossible, or the bundle changed meanwhile.
        OutputError: policy.json cannot be written.
    """
    key = check_calibration(dict(entry))
    directory = bundle_directory(bundle.path)
    place = file_inside(directory, POLICY_NAME)
    with one_writer(directory):  # else of two calibrations at once, one would be lost
        policy, _ = read_json(place)
        check_policy(policy, bundle.digest, bundle.manifest["format_version"])
        kept = [other for other in policy["calibrations"] if check_calibration(other) != key]
        policy["calibrations"] = sorted([*kept, dict(entry)], key=check_calibration)
        content = _sealed_policy(policy, bundle.digest, bundle.manifest["format_version"])
        with atomic_write(place) as temporary:
            temporary.write_bytes(content)
    return load_bundle(bundle.path)


def find_bundle(folder: str | Path) -> Path:
    """Return the only bundle in a folder, or the folder itself where it is one.

    Raises:
        UsageError: There is none, or more than one; the message lists what was found.
    """
    folder = Path(folder)
    if (folder / MANIFEST_NAME).is_file():
        return folder
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise UsageError(f"{folder} cannot be searched for a bundle ({error.strerror})", "name the bundle") from error
    found = [e for e in entries if e.is_dir() and (e.suffix == ".bundle" or (e / MANIFEST_NAME).is_file())]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(str(entry) for entry in found)
        raise UsageError(f"several bundles here: {names}", f"name the one you mean, for example {found[0]}")
    checkpoints = [str(entry) for entry in entries if entry.suffix in CHECKPOINT_SUFFIXES]
    beside = f" (but checkpoints: {', '.join(checkpoints)})" if checkpoints else ""
    first = checkpoints[0] if checkpoints else "CHECKPOINT"
    raise UsageError(f"no bundle in {folder.resolve()}{beside}", f"name one, or make one: flss-edge export {first}")


def utc_now() -> str:
    """Return the current time as the format writes it: UTC, ISO 8601, seconds."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _role(key: str) -> str:
    return key.split(".", 1)[0]


def _place(place: Path, content: bytes | Path) -> dict[str, Any]:
    """Write one file of the bundle; return its line in the manifest."""
    if isinstance(content, bytes):
        place.write_bytes(content)
    else:
        shutil.copyfile(content, place)
    return {"sha256": sha256_file(place), "size": place.stat().st_size}


def _sealed_policy(policy: Mapping[str, Any], manifest_sha256: str, version: int) -> bytes:
    sealed = {**policy, "format_version": version, "manifest_sha256": manifest_sha256}
    file_json(sealed)  # refuses what cannot be written before a digest is taken of it
    sealed["sha256"] = policy_digest(sealed)
    return file_json(sealed)
