from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pytest

from flss_edge.classifiers.answers import Answers
from flss_edge.robustness.adversarial_set import read_adversarial_set, write_adversarial_set
from flss_edge.robustness.state import Piece, State, occupied
from flss_runtime.errors import DataError, OutputError

IDENTITY = {"seed": 1, "plan": [["clean", 0.0]]}


def piece() -> Piece:
    answers = {"vote s=2": Answers(np.array([1, 2]), np.array([60.0, 3.0]), np.array([True, False]))}
    return Piece(np.full((2, 3, 4, 4), 0.25, np.float32), answers, 1.5)


def hold(folder: Path, ready: multiprocessing.Event, done: multiprocessing.Event) -> None:  # type: ignore[valid-type]
    with occupied(folder, IDENTITY, overwrite=False):
        ready.set()  # type: ignore[attr-defined]
        done.wait(30)  # type: ignore[attr-defined]


def test_a_piece_survives_the_folder(tmp_path: Path) -> None:
    with occupied(tmp_path / "run", IDENTITY, overwrite=False):
        State(tmp_path / "run").save("vote:accepted-wrong@0.5", 250, piece())
    loaded = State(tmp_path / "run").load("vote:accepted-wrong@0.5", 250)
    assert loaded is not None and loaded.seconds == 1.5
    assert np.array_equal(loaded.images, piece().images)
    assert np.array_equal(loaded.answers["vote s=2"].scores, [60, 3])
    assert State(tmp_path / "run").load("vote:accepted-wrong@0.5", 0) is None


def test_memory_drops_the_images_of_a_finished_batch_unless_told_to_keep_them() -> None:
    for keep in (False, True):
        state = State(keep_images=keep)
        state.save("pgd", 0, piece())
        state.save("pgd", 2, piece())
        state.finish_batch(0)
        counts = [len(found.images) for start in (0, 2) if (found := state.load("pgd", start))]
        assert counts == [2 if keep else 0, 2]


def test_a_folder_of_another_campaign_is_refused_and_overwritten_when_asked(tmp_path: Path) -> None:
    with occupied(tmp_path, IDENTITY, overwrite=False):
        State(tmp_path).save("pgd", 0, piece())
    with pytest.raises(OutputError, match="seed differ"), occupied(tmp_path, IDENTITY | {"seed": 2}, overwrite=False):
        pass
    assert State(tmp_path).load("pgd", 0) is not None
    with occupied(tmp_path, IDENTITY | {"seed": 2}, overwrite=True):
        assert State(tmp_path).load("pgd", 0) is None


def test_a_damaged_piece_is_named(tmp_path: Path) -> None:
    with occupied(tmp_path, IDENTITY, overwrite=False):
        State(tmp_path).save("pgd", 0, piece())
    (path,) = (tmp_path / "pieces").iterdir()
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=r"pgd-000000\.npz.*cannot be read"):
        State(tmp_path).load("pgd", 0)


def test_one_evaluation_at_a_time(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=hold, args=(tmp_path, ready, done))
    other.start()
    try:
        assert ready.wait(60)
        with pytest.raises(OutputError, match="another evaluation is running"):
            with occupied(tmp_path, IDENTITY, overwrite=False):
                pass
    finally:
        done.set()
        other.join(30)


def test_adversarial_images_are_saved_and_read_bit_for_bit(tmp_path: Path) -> None:
    images = [np.random.default_rng(number).random((3, 3, 8, 8), np.float32) for number in range(2)]
    labels = np.array([2, 0, 1])
    attacks = [("clean", "clean", 0.0), ("pgd", "paper", 0.03)]
    description = {"attacks": [{"name": name, "groups": [group], "epsilon": radius} for name, group, radius in attacks]}
    path = tmp_path / "adv.npz"
    write_adversarial_set(path, labels, description, iter(images), overwrite=False)
    found = read_adversarial_set(path)
    assert np.array_equal(found.labels, labels) and [each["name"] for each in found.attacks] == ["clean", "pgd"]
    assert all(np.array_equal(found.images(number), images[number]) for number in range(2))
    with pytest.raises(OutputError, match="exists"):
        write_adversarial_set(path, labels, description, iter(images), overwrite=False)


@pytest.mark.parametrize("damage", ["missing", "truncated", "other", "images"])
def test_files_that_hold_no_adversarial_images(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "adv.npz"
    description = {"attacks": [{"name": "clean", "groups": ["clean"], "epsilon": 0.0}]}
    wrong = np.zeros((2, 8, 8, 3), np.uint8) if damage == "images" else np.zeros((2, 3, 8, 8), np.float32)
    write_adversarial_set(path, np.array([0, 1]), description, iter([wrong]), overwrite=False)  # type: ignore[list-item]
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:300])
    elif damage == "other":
        np.savez(path, labels=np.arange(3))
    with pytest.raises(DataError) as caught:
        read_adversarial_set(path).images(0)
    assert "save-adversarial" in caught.value.fix
