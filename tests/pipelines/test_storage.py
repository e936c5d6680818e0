import os
import pickle
import uuid
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from pyarrow import fs as pafs

from perceiver.errors import UserError
from perceiver.files import read_manifest, write_manifest
from pipelines.storage import Storage, check_run_name


@pytest.fixture(params=["local", "memory"])
def storage(request, tmp_path):
    """A storage of each kind: the local file system, and one without atomic renames behind fsspec."""
    if request.param == "local":
        return Storage.from_uri(tmp_path / "results")
    return Storage.from_uri(f"memory://{uuid.uuid4().hex}/results")


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "source"
    (path / "deep").mkdir(parents=True)
    (path / "a").write_bytes(b"1")
    (path / "deep" / "b").write_bytes(b"22")
    write_manifest(path, step=3)
    return path


def test_local_uris_are_resolved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for uri in ("runs/x", f"file://{tmp_path}/runs/x", f"local://{tmp_path}/runs/x", tmp_path / "runs" / "x"):
        storage = Storage.from_uri(uri)
        assert storage.is_local
        assert storage.local_path == tmp_path / "runs" / "x"
    assert Storage.from_uri("~/runs").local_path == tmp_path / "home" / "runs"


def test_chained_uri_works_below_its_folder(tmp_path):
    storage = Storage.from_uri(f"dir::file://{tmp_path}/results")
    (storage / "a/b").write_bytes(b"x")
    assert (storage / "a/b").read_bytes() == b"x"
    assert (storage / "a").names() == ["b"]


def test_write_read_and_list(storage):
    assert not storage.exists()
    assert storage.names() == []
    (storage / "stage" / "file").write_bytes(b"old and long")
    (storage / "stage" / "file").write_bytes(b"0123456")
    (storage / "stage/other").write_bytes(b"")
    assert storage.is_dir()
    assert (storage / "stage").names() == ["file", "other"]
    assert (storage / "stage" / "file").read_bytes() == b"0123456"
    assert (storage / "stage" / "file").read_bytes(5) == b"56"
    assert (storage / "stage" / "file").read_bytes(50) == b""
    with pytest.raises(FileNotFoundError):
        (storage / "stage" / "missing").read_bytes()


def test_names_and_parents(storage):
    child = storage / "a" / "b"
    assert child.name == "b"
    assert child.parent == storage / "a"
    assert child.uri == f"{storage.uri}/a/b"


def test_options_and_keys_of_a_uri_stay_apart_from_its_path():
    base = Storage.from_uri("memory://x")
    storage = Storage("s3://key:secret@bucket/runs?region=eu", "bucket/runs", base.filesystem)
    child = storage / "mlm"
    assert child.uri == "s3://key:secret@bucket/runs/mlm?region=eu"
    assert child.parent == storage
    assert str(child) == "s3://bucket/runs/mlm"


@pytest.mark.parametrize("base", ["s3://bucket/runs?region=eu-west-1", "memory://bucket/runs"])
@pytest.mark.parametrize("name", ["plain", "two words", "\N{CAT}", "a?b", "a#b", "a%20b"])
def test_a_uri_leads_back_to_its_place_whatever_the_name(base, name):
    place = Storage.from_uri(base) / name / "model"
    assert place.path.endswith(f"/{name}/model")
    for there in (place, place.parent):
        assert Storage.from_uri(there.uri).path == there.path


def test_json(storage):
    assert (storage / "x.json").read_json() is None
    (storage / "x.json").write_json({"a": [1, 2.5]})
    assert (storage / "x.json").read_json() == {"a": [1, 2.5]}


def test_delete_file_folder_and_nothing(storage):
    (storage / "a" / "b").write_bytes(b"x")
    (storage / "c").write_bytes(b"x")
    for name in ("a", "c", "missing"):
        (storage / name).delete()
    assert storage.names() == []


def test_move_takes_the_whole_folder_and_overwrites_nothing(storage):
    (storage / "old" / "a").write_bytes(b"1")
    (storage / "old" / "deep" / "b").write_bytes(b"2")
    (storage / "old").move(storage / "aside" / "new")
    assert storage.names() == ["aside"]
    assert (storage / "aside/new/a").read_bytes() == b"1"
    assert (storage / "aside/new/deep/b").read_bytes() == b"2"
    (storage / "old" / "a").write_bytes(b"3")
    with pytest.raises(FileExistsError):
        (storage / "old").move(storage / "aside" / "new")


def test_folders_go_up_and_come_down_whole(storage, folder, tmp_path):
    (storage / "model" / "stale").write_bytes(b"x")
    (storage / "model").upload_folder(folder)
    assert storage.names() == ["model"]
    assert (storage / "model").names() == ["a", "deep", "manifest.json"]
    (storage / "model").download_folder(tmp_path / "copy")
    assert read_manifest(tmp_path / "copy")["step"] == 3
    assert (tmp_path / "copy" / "deep" / "b").read_bytes() == b"22"
    with (storage / "model").as_local_folder() as local:
        assert read_manifest(local)["step"] == 3
    with pytest.raises(FileNotFoundError):
        (storage / "missing").download_folder(tmp_path / "copy")


def test_manifest_is_uploaded_last(folder, monkeypatch):
    written = []
    storage = Storage.from_uri(f"memory://{uuid.uuid4().hex}")
    monkeypatch.setattr(Storage, "write_bytes", lambda self, data: written.append(self.name))
    (storage / "model").upload_folder(folder)
    assert sorted(written[:-1]) == ["a", "b"]
    assert written[-1] == "manifest.json"


def test_interrupted_local_upload_keeps_what_was_there(tmp_path, folder, monkeypatch):
    storage = Storage.from_uri(tmp_path / "results") / "model"
    storage.upload_folder(folder)

    def fail(source, target):
        Path(target).mkdir()
        (Path(target) / "a").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copytree", fail)
    with pytest.raises(OSError, match="No space"):
        storage.upload_folder(folder)
    assert read_manifest(storage.local_path)["step"] == 3
    assert storage.parent.names() == ["model"]


def test_storage_can_be_sent_to_workers(tmp_path):
    storage = Storage.from_uri(tmp_path) / "run"
    copy = pickle.loads(pickle.dumps(storage))
    (copy / "x").write_bytes(b"1")
    assert copy == storage
    assert storage.names() == ["x"]


def test_writable_places_pass_and_stay_clean(storage):
    storage.check_writable()
    assert storage.names() == []


def _below_a_file(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    return tmp_path / "file" / "runs"


def _read_only(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    (tmp_path / "closed").mkdir(mode=0o500)
    return tmp_path / "closed" / "runs"


@pytest.mark.parametrize("make", [_below_a_file, _read_only, lambda _: "/proc/runs"])
def test_places_that_cannot_be_written_are_a_users_error(tmp_path, make):
    place = make(tmp_path)
    with pytest.raises(UserError, match="cannot be written") as caught:
        Storage.from_uri(place).check_writable()
    assert str(place) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("uri", ["", "foo://bucket/runs", "sftp://host/runs", "abfs://container/runs"])
def test_uris_that_no_file_system_serves_are_a_users_error(uri):
    with pytest.raises(UserError, match="storage_path .* cannot be opened") as caught:
        Storage.from_uri(uri)
    assert "\n" not in str(caught.value)


def test_missing_credentials_are_a_users_error():
    class Denying(MemoryFileSystem):
        protocol = "denying"

        def _open(self, *args, **kwargs):
            raise PermissionError("no credentials:\nset KEY")

    filesystem = pafs.PyFileSystem(pafs.FSSpecHandler(Denying()))
    with pytest.raises(UserError, match=r"'denying://b/runs' cannot be written \(no credentials:\)"):
        Storage("denying://b/runs", "/b/runs", filesystem).check_writable()


@pytest.mark.parametrize("name", ["a", "imdb-1", "Größe_2.5", "a b", "x" * 100])
def test_good_run_names(name):
    check_run_name(name)


@pytest.mark.parametrize("name", ["", " ", ".", "..", "../x", "a/b", "/a", "a\\b", ".hidden", "a\nb", "a\0", "x" * 101])
def test_bad_run_names(name):
    with pytest.raises(UserError, match="run_name") as caught:
        check_run_name(name)
    assert "\n" not in str(caught.value)
