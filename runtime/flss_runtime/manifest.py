"""What may stand in a bundle's two JSON files, and what they must agree on.

The specification is docs/bundle-format.md, sections 3 to 5. Nothing here looks at the other files of a bundle.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from flss_runtime.errors import BundleError
from flss_runtime.images import InputSpec
from flss_runtime.strict_json import EXPORT_AGAIN, Fields, Json, canonical_json, describe, is_printable

VERSIONS = (1, 2)
MANIFEST_NAME = "manifest.json"
POLICY_NAME = "policy.json"
GOLDEN_NAME = "golden.npz"
REFERENCE_NAME = "reference.npz"
PRECISIONS = ("fp32", "fp16", "int8")
ROLES = ("encoder", "head", "deterministic", "gate", "fused", "logit")
GATE = "gate"
REFERENCE = "reference"  # of a calibration: the votes that the drift monitor compares with
MAX_REFERENCE_IMAGES = 1_000_000

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)


def policy_digest(policy: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the canonical JSON of a policy without its own `sha256`."""
    return hashlib.sha256(canonical_json({key: value for key, value in policy.items() if key != "sha256"})).hexdigest()


def has_gate(manifest: Mapping[str, Any]) -> bool:
    """Tell whether a manifest lists a gate, in whatever precision."""
    graphs = manifest.get("graphs")
    return isinstance(graphs, Mapping) and any(key.split(".", 1)[0] == GATE for key in graphs)


def version_for(manifest: Mapping[str, Any]) -> int:
    """Return the format version of a bundle: 2 with a gate, which a reader of version 1 would overlook, else 1."""
    return 2 if has_gate(manifest) else 1


def check_version(values: Json, where: str) -> int:
    """Return the format version, unless it is one that we do not read.

    Raises:
        BundleError: Missing, not an integer, or newer.
    """
    version = values.get("format_version")
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise Fields(values, where).fail("format_version", "a positive integer")
    if version not in VERSIONS:
        known = " and ".join(map(str, VERSIONS))
        problem = f"{where} has format version {version}, newer than this flss-edge, which reads only {known}"
        fix = "upgrade flss-edge on this machine, or export with the version that is installed here"
        raise BundleError(problem, fix)
    return version


def check_manifest(values: Json) -> None:
    """Check every key that this version requires (section 4); files on disk are the bundle's matter.

    Raises:
        BundleError: A key is missing, of the wrong type, or contradicts another.
    """
    version = check_version(values, MANIFEST_NAME)
    fields = Fields(values, MANIFEST_NAME)
    fields.text("name")
    fields.text("created")
    fields.integer("latent_dim", 1)
    fields.integer("opset", 1)
    _check_classes(fields)
    InputSpec.from_json(values.get("input"))
    _check_checkpoint(fields.object("checkpoint"))
    fields.object("data")
    fields.object("tools")
    listed = _check_files(fields.object("files"))
    _check_graphs(fields, listed)
    if version != version_for(values):
        needs = "has a gate, which needs" if has_gate(values) else "has no gate, which is"
        raise BundleError(
            f"{MANIFEST_NAME} {needs} format version {version_for(values)}; found {version}", EXPORT_AGAIN
        )
    if has_gate(values):
        _check_checkpoint(fields.object("gate_checkpoint"))


def check_policy(values: Json, manifest_sha256: str, version: int) -> None:
    """Check policy.json (section 5) and that it belongs to the manifest with this digest and format version.

    Raises:
        BundleError: Altered, of another bundle, or with impossible values.
    """
    found_version = check_version(values, POLICY_NAME)
    fields = Fields(values, POLICY_NAME)
    fix = "restore policy.json, or calibrate again: flss-edge calibrate BUNDLE --data DATA --budget 0.10"
    stated, found = fields.sha256("sha256"), policy_digest(values)
    if stated != found:
        problem = f"policy.json was altered: it states sha256 {stated[:12]}…, its content has {found[:12]}…"
        raise BundleError(problem, fix)
    owner = fields.sha256("manifest_sha256")
    if owner != manifest_sha256:
        made_for = f"it was made for manifest {owner[:12]}…, the one beside it is {manifest_sha256[:12]}…"
        raise BundleError(f"policy.json belongs to another bundle: {made_for}", fix)
    if found_version != version:
        raise BundleError(f"policy.json has format version {found_version}, the manifest beside it {version}", fix)
    fields.integer("num_samples", 1)
    fields.number("noise_scale")
    seen: set[tuple[int, float, str]] = set()
    for index, entry in enumerate(fields.array("calibrations")):
        key = check_calibration(entry, f"{POLICY_NAME}: calibrations[{index}]")
        if key in seen:
            problem = f"{POLICY_NAME}: two calibrations for num_samples {key[0]}, noise_scale {key[1]}, mode {key[2]}"
            raise BundleError(problem, fix)
        seen.add(key)


def check_calibration(entry: object, where: str = "calibration") -> tuple[int, float, str]:
    """Check one calibration entry; return what it holds for: (num_samples, noise_scale, mode).

    Raises:
        BundleError: A key is missing or impossible, such as min_votes > num_samples.
    """
    fields = Fields(entry, where)
    num_samples = fields.integer("num_samples", 1)
    fields.integer("min_votes", 0, num_samples)
    if GATE in fields.keys():
        gate = fields.object(GATE)
        if gate.number("min_confidence") > 1:
            raise gate.fail("min_confidence", "a number from 0 to 1")
    if REFERENCE in fields.keys():
        _check_reference(fields.object(REFERENCE), num_samples)
    return num_samples, fields.number("noise_scale"), fields.text("mode")


def check_name(name: object) -> str:
    """Return a file name that cannot leave the bundle.

    Raises:
        BundleError: A path, a parent, an absolute or otherwise odd name.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name) or ".." in name or name in (MANIFEST_NAME, POLICY_NAME):
        problem = f"{MANIFEST_NAME} names a file {describe(name)}, which a bundle may not list"
        raise BundleError(problem, "use plain file names (letters, digits, . _ -) inside the bundle; " + EXPORT_AGAIN)
    return name


def _check_reference(fields: Fields, num_samples: int) -> None:
    votes, gated = fields.array("votes"), fields.integer("gated", 0, MAX_REFERENCE_IMAGES)
    if len(votes) != num_samples + 1 or any(type(count) is not int or count < 0 for count in votes):
        raise fields.fail("votes", f"{num_samples + 1} integers >= 0, one for each number of votes")
    if not 1 <= sum(votes) + gated <= MAX_REFERENCE_IMAGES:
        raise fields.fail("votes", f"counts of 1 to {MAX_REFERENCE_IMAGES} images in all")


def _check_classes(fields: Fields) -> None:
    names, count = fields.array("class_names"), fields.integer("num_classes", 2)
    if not all(is_printable(name) for name in names):
        raise fields.fail("class_names", "strings of 1 to 200 printable characters")
    if len(names) != count:
        problem = f"{fields.where}: num_classes is {count}, but class_names has {len(names)} names"
        raise BundleError(problem, EXPORT_AGAIN)
    repeated = [name for name, times in Counter(names).items() if times > 1]
    if repeated:
        problem = f"{fields.where}: class name {repeated[0]!r} occurs more than once"
        raise BundleError(problem, "give every class its own name and export again")


def _check_checkpoint(fields: Fields) -> None:
    fields.sha256("sha256")
    fields.text("origin")


def _check_files(fields: Fields) -> set[str]:
    names = [check_name(name) for name in fields.keys()]
    if len({name.lower() for name in names}) != len(names):
        raise BundleError(f"{fields.where}: two file names differ only in letter case", EXPORT_AGAIN)
    for name in names:
        entry = fields.object(name)
        entry.sha256("sha256")
        entry.integer("size", 0)
    if GOLDEN_NAME not in names:
        raise BundleError(f"{fields.where}: {GOLDEN_NAME} is not listed", EXPORT_AGAIN)
    return set(names)


def _check_graphs(fields: Fields, listed: set[str]) -> None:
    graphs, precision = fields.object("graphs"), fields.object("precision")
    seen: set[tuple[str, str]] = set()
    for key in graphs.keys():
        role, kind = key.split(".", 1)[0], precision.choice(key, PRECISIONS)
        file = check_name(graphs.text(key))
        if file not in listed:
            raise BundleError(f"{graphs.where}: {file!r} of graph {key!r} is not listed in 'files'", EXPORT_AGAIN)
        if (role, kind) in seen:
            raise BundleError(f"{graphs.where}: two graphs for {role} in {kind}", EXPORT_AGAIN)
        seen.add((role, kind))
    for role in ROLES[:2]:
        graphs.text(role)
