import os

import pytest

from perceiver.errors import UserError
from perceiver.files import DamagedFolderError, read_manifest, sha256_file, write_atomic, write_manifest


@pytest.fixture
def sealed(tmp_path):
    folder = tmp_path / "model"
    write_atomic(folder / "weights", b"abc" * 100)
    write_atomic(folder / "deep" / "config", b"{}")
    write_manifest(folder, task="mlm", step=7)
    return folder


def test_write_atomic_replaces_the_content_and_leaves_nothing_else(tmp_path):
    write_atomic(tmp_path / "new" / "file", b"old and longer")
    write_atomic(tmp_path / "new" / "file", b"new")
    assert (tmp_path / "new" / "file").read_bytes() == b"new"
    assert os.listdir(tmp_path / "new") == ["file"]


def test_failed_write_keeps_the_old_content(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_written_file_has_the_usual_permissions(tmp_path):
    (tmp_path / "usual").write_bytes(b"")
    write_atomic(tmp_path / "file", b"")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_manifest_holds_facts_sizes_and_checksums(sealed):
    manifest = read_manifest(sealed)
    assert (manifest["task"], manifest["step"]) == ("mlm", 7)
    assert set(manifest["files"]) == {"weights", "deep/config"}
    assert manifest["files"]["weights"] == {"sha256": sha256_file(sealed / "weights"), "size": 300}


def test_sha256_of_a_known_text(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256_file(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def _remove(path):
    path.unlink()


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def _alter(path):
    path.write_bytes(b"X" + path.read_bytes()[1:])


@pytest.mark.parametrize(
    ("damage", "name", "message"),
    [
        (_remove, "weights", "is missing"),
        (_truncate, "weights", "has 299 bytes, not 300"),
        (_alter, "deep/config", "was altered"),
        (_remove, "manifest.json", "has no readable manifest.json"),
        (_truncate, "manifest.json", "is not a manifest"),
    ],
)
def test_damage_is_noticed_and_named(sealed, damage, name, message):
    damage(sealed / name)
    with pytest.raises(DamagedFolderError, match=message) as caught:
        read_manifest(sealed)
    assert isinstance(caught.value, UserError)
    assert "\n" not in str(caught.value)


def test_without_verification_sizes_are_checked_but_checksums_are_not(sealed):
    _alter(sealed / "weights")
    assert read_manifest(sealed, verify=False)["step"] == 7
    _truncate(sealed / "weights")
    with pytest.raises(DamagedFolderError, match="299 bytes"):
        read_manifest(sealed, verify=False)


def test_manifest_of_something_else_is_refused(sealed):
    write_atomic(sealed / "manifest.json", b"[1, 2]")
    with pytest.raises(DamagedFolderError, match="is not a manifest"):
        read_manifest(sealed)
