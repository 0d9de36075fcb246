"""Atomic writing: the old file stays whole until the new one is, and nothing is left lying about."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from fastrfm.atomic import check_output, writing
from fastrfm.errors import InputError, OutputExistsError, WriteError

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def old(tmp_path):
    path = tmp_path / "out.csv"
    path.write_bytes(b"old")
    return path


def assert_untouched(path):
    assert path.read_bytes() == b"old"
    assert [found.name for found in path.parent.iterdir()] == [path.name]


def no_links(*_args):
    raise OSError(errno.EPERM, "no hard links here")


def test_new_file(tmp_path):
    path = tmp_path / "out.csv"
    with writing(path) as aside:
        assert aside.parent == tmp_path and aside.name.startswith(".")
        aside.write_bytes(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_relative_and_text_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with writing("out.csv") as aside:
        aside.write_text("x")
    assert Path("out.csv").read_text() == "x"


def test_force_replaces(old):
    with writing(old, force=True) as aside:
        aside.write_bytes(b"new")
        assert old.read_bytes() == b"old"
    assert old.read_bytes() == b"new"
    assert list(old.parent.iterdir()) == [old]


def test_without_force_the_block_is_not_entered(old):
    with pytest.raises(OutputExistsError, match=r"out\.csv: exists already .* --force \(force=True\)"), writing(old):
        pytest.fail("entered")
    assert_untouched(old)


@pytest.mark.parametrize("has_links", [True, False])
def test_a_file_that_appears_meanwhile_is_kept(tmp_path, monkeypatch, has_links):
    if not has_links:
        monkeypatch.setattr(os, "link", no_links)
    path = tmp_path / "out.csv"
    with pytest.raises(OutputExistsError, match="exists already"), writing(path) as aside:
        aside.write_bytes(b"new")
        path.write_bytes(b"old")
    assert_untouched(path)


def test_file_systems_without_hard_links(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", no_links)
    path = tmp_path / "out.csv"
    with writing(path) as aside:
        aside.write_bytes(b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_failed_rename_gives_the_claimed_name_back(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", no_links)
    monkeypatch.setattr(os, "replace", no_links)
    with pytest.raises(WriteError), writing(tmp_path / "out.csv") as aside:
        aside.write_bytes(b"new")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("x (file write failed: errno = 28, error message = 'No space left on device', offset = 96)"),
        ValueError("No space\nleft on device"),
    ],
)
def test_failures_become_write_errors(old, error):
    with pytest.raises(WriteError) as caught, writing(old, force=True) as aside:
        aside.write_bytes(b"half")
        raise error
    assert str(caught.value).startswith(f"{old}: writing failed, No space left on device; nothing was changed")
    assert caught.value.__cause__ is error
    assert_untouched(old)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), InputError("bad"), TypeError("bug"), SystemExit(3)])
def test_other_exceptions_pass_through(old, error):
    with pytest.raises(type(error)) as caught, writing(old, force=True) as aside:
        aside.write_bytes(b"half")
        raise error
    assert caught.value is error
    assert_untouched(old)


def test_killed_half_way(old):
    code = (
        "import os, sys\nfrom fastrfm.atomic import writing\n"
        "with writing(sys.argv[1], force=True) as aside:\n    aside.write_bytes(b'half')\n    os._exit(9)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(old)], check=False, cwd=ROOT)
    assert killed.returncode == 9
    assert old.read_bytes() == b"old"
    leftover = [found.name for found in old.parent.iterdir() if found != old]
    assert len(leftover) == 1 and leftover[0].startswith(".fastrfm-") and leftover[0].endswith(".part")


def test_failing_flush(old, monkeypatch):
    def fail(_handle):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(WriteError, match="Input/output error"), writing(old, force=True) as aside:
        aside.write_bytes(b"new")
    assert_untouched(old)


def test_content_is_flushed_before_the_name_and_the_folder_after(old, monkeypatch):
    seen = []
    real = os.fsync

    def spy(handle):
        kind = "folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file"
        seen.append((kind, old.read_bytes()))
        real(handle)

    monkeypatch.setattr(os, "fsync", spy)
    with writing(old, force=True) as aside:
        aside.write_bytes(b"new")
    assert seen == [("file", b"old"), ("folder", b"new")]


def test_folder_that_cannot_be_flushed_is_no_failure(old, monkeypatch):
    real = os.fsync

    def only_files(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(handle)

    monkeypatch.setattr(os, "fsync", only_files)
    with writing(old, force=True) as aside:
        aside.write_bytes(b"new")
    assert old.read_bytes() == b"new"


def test_permissions(tmp_path, old):
    mask = os.umask(0o022)
    try:
        with writing(tmp_path / "new.csv") as aside:
            aside.write_bytes(b"x")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "new.csv").stat().st_mode) == 0o644
    old.chmod(0o440)
    with writing(old, force=True) as aside:
        aside.write_bytes(b"x")
    assert stat.S_IMODE(old.stat().st_mode) == 0o440


def test_symbolic_link_is_followed(tmp_path, old):
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / "link.csv"
    link.symlink_to(old)
    with pytest.raises(OutputExistsError):
        check_output(link)
    with writing(link, force=True) as aside:
        aside.write_bytes(b"new")
    assert link.is_symlink() and old.read_bytes() == b"new"


def test_check_output(tmp_path, old):
    check_output(tmp_path / "new.csv")
    check_output(old, force=True)
    with pytest.raises(OutputExistsError, match="use --force"):
        check_output(old)
    with pytest.raises(FileExistsError):
        check_output(str(old), force=False)
    with pytest.raises(WriteError, match=r"the folder .*absent does not exist: make it first"):
        check_output(tmp_path / "absent" / "new.csv")
    with pytest.raises(WriteError, match=r"out\.csv is not a folder"):
        check_output(old / "new.csv")
    for force in (False, True):
        with pytest.raises(WriteError, match="it is a folder"):
            check_output(tmp_path, force=force)
        with pytest.raises(WriteError, match="not a regular file"):
            check_output(os.devnull, force=force)  # replacing a device would break the machine


def test_no_permission_in_the_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_args: False)  # the tests may run as root, who may do everything
    with pytest.raises(WriteError, match="no permission to write in the folder"):
        check_output(tmp_path / "new.csv")
