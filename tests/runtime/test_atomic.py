from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import numpy as np
import pytest

from flss_runtime.atomic import atomic_directory, atomic_write, refuse_existing
from flss_runtime.errors import OutputError


def leftovers(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name.startswith("."))


def test_writes_and_replaces(tmp_path: Path) -> None:
    target = tmp_path / "out.json"
    for text in ("one", "two"):
        with atomic_write(target) as temporary:
            assert temporary.parent == tmp_path
            assert temporary.suffix == ".json"
            temporary.write_text(text)
            assert not target.exists() or target.read_text() == "one"
        assert target.read_text() == text
    assert leftovers(tmp_path) == []


def test_numpy_archives_keep_their_name(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "a.npz") as temporary:
        np.savez(temporary, x=np.arange(3))
    assert os.listdir(tmp_path) == ["a.npz"]


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path, failure: type[BaseException]) -> None:
    target = tmp_path / "out"
    target.write_text("old")
    with pytest.raises(failure), atomic_write(target) as temporary:
        temporary.write_text("half")
        raise failure
    assert target.read_text() == "old"
    assert leftovers(tmp_path) == []


def test_mode_follows_the_umask_and_can_be_private(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "public"):
            pass
        with atomic_write(tmp_path / "private", mode=0o600):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "public").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "private").stat().st_mode) == 0o600


def test_existing_is_refused_before_and_after_the_body(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with (
        pytest.raises(OutputError, match="exists already") as caught,
        atomic_write(target, overwrite=False) as temporary,
    ):
        temporary.write_text("mine")
        target.write_text("somebody was faster")
    assert "--overwrite" in caught.value.fix
    assert target.read_text() == "somebody was faster"
    with pytest.raises(OutputError, match="exists already"), atomic_write(target, overwrite=False):
        pytest.fail("the body must not run")
    with pytest.raises(OutputError, match="exists already"):
        refuse_existing(target, overwrite=False)
    refuse_existing(target, overwrite=True)
    refuse_existing(tmp_path / "absent", overwrite=False)
    assert leftovers(tmp_path) == []


def test_a_link_is_followed_and_survives(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    real = tmp_path / "store" / "real"
    real.write_text("old")
    link = tmp_path / "link"
    link.symlink_to(real)
    with atomic_write(link) as temporary:
        temporary.write_text("new")
    assert link.is_symlink()
    assert real.read_text() == "new"


@pytest.mark.parametrize("target", ["folder", "/dev/null"])
def test_what_is_no_regular_file_is_refused(tmp_path: Path, target: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="not a regular file"), atomic_write(tmp_path / target):
        pytest.fail("the body must not run")
    assert Path("/dev/null").is_char_device()


def test_a_missing_parent_is_named(tmp_path: Path) -> None:
    for target in (tmp_path / "no" / "out", tmp_path / "file" / "out"):
        (tmp_path / "file").touch()
        with pytest.raises(OutputError, match="cannot write") as caught, atomic_write(target):
            pytest.fail("the body must not run")
        assert str(target) in caught.value.problem


def test_a_full_disk_is_an_output_error(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.write_text("old")
    with pytest.raises(OutputError, match="No space left") as caught, atomic_write(target):
        Path("/dev/full").write_text("more than fits")
    assert str(target) in caught.value.problem
    assert target.read_text() == "old"
    assert leftovers(tmp_path) == []


def test_an_error_about_another_file_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "out"):
        (tmp_path / "input").read_text()
    with pytest.raises(FileNotFoundError), atomic_directory(tmp_path / "dir"):
        (tmp_path / "input").read_text()
    assert os.listdir(tmp_path) == []


def write_bundle(folder: Path, text: str, overwrite: bool = False) -> None:
    with atomic_directory(folder, overwrite) as temporary:
        (temporary / "manifest.json").write_text(text)
        (temporary / "sub").mkdir()
        (temporary / "sub" / "file").write_text(text)


def test_directory_appears_whole_and_is_replaced_only_on_request(tmp_path: Path) -> None:
    target = tmp_path / "a.bundle"
    write_bundle(target, "one")
    with pytest.raises(OutputError, match="exists already"):
        write_bundle(target, "two")
    assert (target / "sub" / "file").read_text() == "one"
    write_bundle(target, "two", overwrite=True)
    assert (target / "sub" / "file").read_text() == "two"
    assert os.listdir(tmp_path) == ["a.bundle"]


def test_an_empty_directory_is_filled(tmp_path: Path) -> None:
    (tmp_path / "a.bundle").mkdir()
    write_bundle(tmp_path / "a.bundle", "one")
    assert (tmp_path / "a.bundle" / "manifest.json").read_text() == "one"


def test_a_directory_that_is_no_bundle_is_never_replaced(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.tex").touch()
    with pytest.raises(OutputError, match="never replaced"):
        write_bundle(home, "one", overwrite=True)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="not a directory"):
        write_bundle(tmp_path / "file", "one", overwrite=True)
    with pytest.raises(OutputError, match="cannot write"):
        write_bundle(tmp_path / "no" / "a.bundle", "one")
    assert os.listdir(home) == ["thesis.tex"]
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_directory(tmp_path: Path, failure: type[BaseException]) -> None:
    target = tmp_path / "a.bundle"
    write_bundle(target, "old")
    with pytest.raises(failure), atomic_directory(target, overwrite=True) as temporary:
        (temporary / "manifest.json").write_text("half")
        raise failure
    assert (target / "manifest.json").read_text() == "old"
    assert os.listdir(tmp_path) == ["a.bundle"]


def test_a_failed_second_rename_puts_the_old_directory_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a.bundle"
    write_bundle(target, "old")
    replace, calls = os.replace, []

    def failing(source: Path, destination: Path) -> None:
        calls.append(source)
        if len(calls) == 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        replace(source, destination)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OutputError, match="cannot write"):
        write_bundle(target, "new", overwrite=True)
    assert (target / "manifest.json").read_text() == "old"
    assert os.listdir(tmp_path) == ["a.bundle"]


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a folder that takes no files from anybody")
def test_a_folder_that_takes_no_files_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot write /proc/x\.json"):
        refuse_existing("/proc/x.json", overwrite=False)
    refuse_existing(tmp_path / "x.json", overwrite=False)
    assert os.listdir(tmp_path) == []
