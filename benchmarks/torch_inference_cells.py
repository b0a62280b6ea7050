"""The cells of benchmarks/torch_inference.py, one after the other: each is checked, timed, and kept at once."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch_inference_arms import BASELINE, Cell, Frames, make_frames, network_for, open_arms
from torch_inference_checks import check_arm, choices_of_model, least_bytes

from flss_edge.model import FLSS
from flss_runtime.atomic import atomic_write
from flss_runtime.bench_results import overhead_row
from flss_runtime.errors import CheckFailed, UsageError
from flss_runtime.latency import overhead, summarise, variation
from flss_runtime.machine import Snapshot
from flss_runtime.profiles import Profile
from flss_runtime.visits import block_medians, frame_seconds, run_blocks, settled, settling, stream, warm_up

MEMORY, DECISIONS = "out of memory", "decides otherwise"  # why a cell has no times
_NO_MEMORY = ("out of memory", "can't allocate memory", "Unable to allocate")  # in the words of torch, CUDA and NumPy

Row = dict[str, Any]
"""A cell in JSON values."""


def measure_cells(
    model: FLSS,
    images: NDArray[np.uint8],
    cells: Sequence[Cell],
    profile: Profile,
    kept: Path,
    settings: Mapping[str, Any],
) -> list[Row]:
    """Return one row a cell, those that an earlier run of the same command finished among them.

    Args:
        model: of the checkpoint.
        images: (M, H, W, 3).
        cells: to measure.
        profile: how long everything takes.
        kept: file of the finished rows.
        settings: what two runs have to share, so that their rows may stand in one result.

    Raises:
        UsageError: the file is of another run.
    """
    settings = json.loads(json.dumps(settings))
    rows = _kept_rows(kept, settings)
    for number, cell in enumerate(cells):
        if (cell.batch, cell.precision) in rows:
            continue
        print(f"{cell} ({number + 1} of {len(cells)})", file=sys.stderr, flush=True)
        row = rows[cell.batch, cell.precision] = measure_cell(model, images, cell, profile)
        shown = [f"{arm['name']} {arm['latency_ms']['p50']:.3f} ms" for arm in row["arms"]]
        print(f"  {', '.join(shown) or row['detail']}", file=sys.stderr, flush=True)
        with atomic_write(kept) as temporary:
            text = json.dumps({"settings": settings, "rows": list(rows.values())})
            temporary.write_text(text + "\n", encoding="utf-8")
    return [rows[cell.batch, cell.precision] for cell in cells]


def _kept_rows(kept: Path, settings: Mapping[str, Any]) -> dict[tuple[int, str], Row]:
    if not kept.exists():
        return {}
    found = json.loads(kept.read_text(encoding="utf-8"))
    differing = [name for name, value in settings.items() if found["settings"].get(name) != value]
    if differing:
        raise UsageError(
            f"{kept.name} is what a run with another {' and another '.join(differing)} has finished",
            "Repeat that command to finish it, delete the file, or choose another output.",
        )
    print(f"going on from {kept.name}: {len(found['rows'])} finished", file=sys.stderr, flush=True)
    return {(row["batch"], row["precision"]): row for row in found["rows"]}


def measure_cell(model: FLSS, images: NDArray[np.uint8], cell: Cell, profile: Profile) -> Row:
    """Check and time one batch size in one precision.

    Returns:
        JSON values: "batch", "precision", "failed" (MEMORY, DECISIONS or None), "detail" of that, "arms" and "overhead"
        (as in a result of the bench, and of each arm how it decided and the bytes that a frame has to move at least),
        "warm_up" and "counters".
    """
    row: Row = {"batch": cell.batch, "precision": cell.precision, "failed": None, "detail": ""}
    row |= {"arms": [], "overhead": [], "warm_up": [], "counters": None}
    try:
        frames = make_frames(images, cell, model.config.features)
        exact = replace(cell, precision="fp32")
        truth = choices_of_model(network_for(model, exact), frames, exact)
        network = network_for(model, cell)  # last, because it sets what torch may round
        row |= _timed(network, frames, truth, cell, profile)
    except CheckFailed as error:
        row |= {"failed": DECISIONS, "detail": error.problem}
    except (MemoryError, RuntimeError) as error:  # torch's OutOfMemoryError is a RuntimeError
        if not _is_memory(error):
            raise
        row |= {"failed": MEMORY, "detail": f"{MEMORY}: {str(error).splitlines()[0]}"}
    gc.collect()
    if cell.cuda:
        torch.cuda.empty_cache()
    return row


def _is_memory(error: BaseException | None) -> bool:
    """Tell whether memory was the reason, of this error or of one that it covers, as where a capture breaks off."""
    while error is not None:
        if isinstance(error, MemoryError) or any(words in str(error) for words in _NO_MEMORY):
            return True
        error = error.__context__
    return False


@torch.inference_mode()
def _timed(
    network: FLSS, frames: Frames, truth: Mapping[int | None, NDArray[np.int64]], cell: Cell, profile: Profile
) -> Row:
    """Open the arms, compare their decisions with the truth, and let them take turns."""
    arms, pool = open_arms(network, frames, cell), frames.pool
    decided = {name: check_arm(arm, frames, truth[cell.arms[name][1]], cell) for name, arm in arms.items()}
    order, before = pool.order(0), Snapshot.take()
    warm = [warm_up(arm, pool, order, profile) for arm in arms.values()]
    alone = [np.array(stream(arm, pool, order, 0, profile.stream_s)) / 1e6 for arm in arms.values()]
    settle, count = profile.frames_of_visit(min(map(frame_seconds, warm)))
    taken = run_blocks(arms, pool, order, profile, settle + count, lambda phase: None)
    counters, kept = before.until(Snapshot.take()), settled(taken, settle)
    rows, medians = [], {name: block_medians(kept, index) for index, name in enumerate(arms)}
    for index, (name, (way, samples)) in enumerate(cell.arms.items()):
        between, course = kept["latency_ns"][kept["arm"] == index] / 1e6, settling(taken, index, settle)
        rows.append(
            {
                "name": name,
                "way": way,
                "num_samples": samples,
                **summarise(alone[index]),
                "block_medians_ms": medians[name],
                "variation": variation(np.array(medians[name])),
                "interleaved_over_alone": float(np.median(between) / np.median(alone[index])),
                "settling": course,
                "first_counted": course[settle],
                "decisions": decided[name],
                "least_bytes": least_bytes(network, frames, samples),
            }
        )
    return {"arms": rows, "overhead": _overheads(cell, medians), "warm_up": warm, "counters": counters}


def _overheads(cell: Cell, medians: Mapping[str, list[float]]) -> list[Row]:
    """Return what each sampled arm costs over the baseline that runs in its way."""
    rows = []
    for name, (way, samples) in cell.arms.items():
        if samples is not None:
            baseline = f"{BASELINE}-{way}"
            rows.append(overhead_row(overhead(name, baseline, [medians[name]], [medians[baseline]])))
    return rows
