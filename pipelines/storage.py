"""The place where results lie: a local folder, or an object store behind pyarrow or fsspec."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import fsspec
from fsspec.implementations.local import LocalFileSystem
from pyarrow import fs as pafs

from perceiver.errors import UserError
from perceiver.files import MANIFEST, sync, write_atomic

_PYARROW_SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs")
_ATOMIC_PUT = ("s3", "gcs", "abfs")  # an object appears when its upload is complete, never in part
_MAX_RUN_NAME, _MAX_BYTES = 100, 255  # the bytes are what file systems take
_LEFTOVER = re.compile(r"\..+\.[0-9a-f]{32}\.(new|old|tmp)")  # the names of what is not yet, or no longer, in place


def is_leftover(name: str) -> bool:
    """Tell whether a name is that of something that is not yet, or no longer, in its place."""
    return _LEFTOVER.fullmatch(name) is not None


def check_run_name(name: str) -> None:
    """Raise a UserError unless the name makes exactly one folder below any storage path."""
    reason = None
    if not name.strip():
        reason = "is empty"
    elif len(name) > _MAX_RUN_NAME:
        reason = f"has {len(name)} characters"
    elif any(character in "/\\" or not character.isprintable() for character in name):
        reason = "has a slash, a backslash or a control character"
    elif len(name.encode()) > _MAX_BYTES:
        reason = f"has {len(name.encode())} bytes"
    elif name.startswith("."):
        reason = "begins with a dot"
    elif name != name.strip():
        reason = "begins or ends with a space"
    if reason:
        shown = name if len(name) <= _MAX_RUN_NAME else name[:20] + "..."
        raise UserError(f"run_name {shown!r} {reason}: use 1 to {_MAX_RUN_NAME} letters, digits, '-', '_' and '.'")


@dataclass(frozen=True)
class Storage:
    """A folder, or the name of a file, in a local or remote file system. It can be sent to other processes.

    Make the first with `Storage.from_uri`, and those below it with `storage / "name"`.
    """

    uri: str
    """The path of a local folder, the URI of a remote one."""
    path: str
    """The path inside `filesystem`."""
    filesystem: pafs.FileSystem
    """The pyarrow file system."""

    @classmethod
    def from_uri(cls, uri: str | os.PathLike[str], name: str = "storage_path") -> Storage:
        """Open a place by its path (`~` and relative paths are resolved) or its URI.

        Args:
            uri: The path or URI.
            name: Option that holds it, for the error message.

        Raises:
            UserError: No file system goes by the URI's scheme, or it cannot be set up.
        """
        text = os.fspath(uri)
        try:
            if "://" not in text and "::" not in text:
                return cls._local(text)
            if text.split("://")[0] in _PYARROW_SCHEMES:
                filesystem, path = pafs.FileSystem.from_uri(_with_time_limit(text))
                return cls(text.rstrip("/"), path.rstrip("/"), filesystem)
            filesystem, path = fsspec.core.url_to_fs(text)
        except (ValueError, ImportError, OSError) as error:
            raise UserError(f"{name} {text!r} cannot be opened ({_reason(error)}): give another path or URI") from None
        if isinstance(filesystem, LocalFileSystem):
            return cls._local(path)
        wrapped = pafs.PyFileSystem(pafs.FSSpecHandler(filesystem))
        return cls(text.rstrip("/"), path.rstrip("/"), wrapped)

    @classmethod
    def _local(cls, path: str) -> Storage:
        if not path:
            raise ValueError("it is empty")
        absolute = os.path.abspath(os.path.expanduser(path))
        return cls(absolute, absolute, pafs.LocalFileSystem())

    def __truediv__(self, name: str) -> Storage:
        """Return the place `name` (which may have several parts, with slashes) below this one."""
        base, mark, options = self.uri.partition("?") if self._has_options else (self.uri, "", "")
        uri = f"{base.rstrip('/')}/{quote(name) if self._has_options else name}{mark}{options}"
        return Storage(uri, f"{self.path.rstrip('/')}/{name}", self.filesystem)

    def __str__(self) -> str:
        """Return the URI fit for logs: without keys and options."""
        return self.uri if self.is_local else re.sub(r"//[^/@]*@", "//", self.uri.partition("?")[0])

    @property
    def _has_options(self) -> bool:
        """Whether pyarrow reads the URI: its path is quoted, and options may follow."""
        return self.uri.split("://")[0] in _PYARROW_SCHEMES

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rsplit("/", 1)[-1]

    @property
    def parent(self) -> Storage:
        """The folder that this place lies in."""
        base, mark, options = self.uri.partition("?") if self._has_options else (self.uri, "", "")
        return Storage(base.rpartition("/")[0] + mark + options, self.path.rpartition("/")[0], self.filesystem)

    @property
    def is_local(self) -> bool:
        """Whether this is a folder or file of the local (or a mounted) file system."""
        return isinstance(self.filesystem, pafs.LocalFileSystem)

    @property
    def local_path(self) -> Path:
        """The path of a local place."""
        assert self.is_local, f"{self.uri} is not local"
        return Path(self.path)

    def exists(self) -> bool:
        """Return whether a file or folder is here."""
        return self.filesystem.get_file_info(self.path).type != pafs.FileType.NotFound

    def is_readable(self) -> bool:
        """Return whether a file is here that can be opened."""
        try:
            self.filesystem.open_input_file(self.path).close()
        except Exception:  # file systems raise errors of many kinds
            return False
        return True

    def is_dir(self) -> bool:
        """Return whether a folder is here."""
        return self.filesystem.get_file_info(self.path).type == pafs.FileType.Directory

    def names(self) -> list[str]:
        """Return the sorted names of the files and folders in this folder; none where there is no folder."""
        infos = self.filesystem.get_file_info(pafs.FileSelector(self.path, allow_not_found=True))
        return sorted(info.base_name for info in infos)

    def read_bytes(self, offset: int = 0) -> bytes:
        """Return a file's content.

        Args:
            offset: Bytes to pass over; beyond the end there is nothing to read.

        Raises:
            FileNotFoundError: There is no such file.
        """
        with self.filesystem.open_input_file(self.path) as file:
            if offset >= file.size():
                return b""
            file.seek(offset)
            content: bytes = file.read()
            return content

    def write_bytes(self, data: bytes) -> None:
        """Write a file so that readers find the old content or the new one, and make the folders it needs."""
        if self.is_local:
            write_atomic(self.path, data)
        elif self.filesystem.type_name in _ATOMIC_PUT:
            self._put(data)
        else:
            temporary = self.parent / f".{self.name}.{uuid.uuid4().hex}.tmp"
            temporary._put(data)
            self.filesystem.move(temporary.path, self.path)

    def _put(self, data: bytes) -> None:
        if self.filesystem.type_name not in _ATOMIC_PUT:  # object stores have no folders
            self.filesystem.create_dir(self.parent.path, recursive=True)
        with self.filesystem.open_output_stream(self.path) as file:
            file.write(data)

    def read_json(self) -> Any:
        """Return the content of a JSON file, or None where there is none."""
        try:
            return json.loads(self.read_bytes())
        except FileNotFoundError:
            return None

    def write_json(self, value: Any) -> None:
        """Write a JSON file, as `write_bytes` does."""
        self.write_bytes(json.dumps(value, indent=2, allow_nan=False).encode())

    def delete(self) -> None:
        """Delete the file or the whole folder, if it is there."""
        kind = self.filesystem.get_file_info(self.path).type
        if kind == pafs.FileType.Directory:
            self.filesystem.delete_dir(self.path)
        elif kind != pafs.FileType.NotFound:
            self.filesystem.delete_file(self.path)

    def delete_leftovers(self) -> None:
        """Delete what writers that died left beside the files and folders in this folder; nobody may write here now."""
        for name in self.names():
            if is_leftover(name):
                (self / name).delete()

    def move(self, target: Storage) -> None:
        """Move this file or folder to a place, of the same file system, where nothing is yet."""
        if target.exists():
            raise FileExistsError(f"{target} exists")
        if self.is_local:
            target.local_path.parent.mkdir(parents=True, exist_ok=True)
            os.rename(self.path, target.path)
            sync(target.local_path.parent)
            return
        for source, relative in self._files():  # object stores cannot rename a folder
            copy = target / relative if relative else target
            copy.write_bytes(source.read_bytes())
        self.delete()

    def write_folder(self, write: Callable[[Path], object]) -> None:
        """Let `write` make a new local folder, and put it in this place, instead of what was here.

        Locally it is made beside this place, so that nothing is written twice, and appears at once. Elsewhere
        manifest.json arrives last: a folder with one is whole.
        """
        if self.is_local:
            _replace_folder(self.local_path, write)
            return
        with tempfile.TemporaryDirectory(prefix="perceiver-") as temporary:
            folder = Path(temporary) / self.name
            write(folder)
            self.upload_folder(folder)

    def upload_folder(self, folder: str | os.PathLike[str]) -> None:
        """Copy a local folder to this place, and replace what was here, as `write_folder` does."""
        if self.is_local:
            self.write_folder(lambda new: shutil.copytree(folder, new))
            return
        self.delete()
        paths = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        for path in sorted(paths, key=lambda path: path == Path(folder) / MANIFEST):
            target = self / path.relative_to(folder).as_posix()
            target.write_bytes(path.read_bytes())

    def download_folder(self, folder: str | os.PathLike[str]) -> None:
        """Copy this folder to a local one that appears at once and replaces what was there.

        Raises:
            FileNotFoundError: There is no folder here.
        """
        if not self.is_dir():
            raise FileNotFoundError(f"{self} is not a folder")
        _replace_folder(Path(folder), self._copy_files_to)

    @contextmanager
    def as_local_folder(self) -> Iterator[Path]:
        """Provide this folder on the local disk for reading: itself, or a temporary copy of a remote one."""
        if self.is_local:
            yield self.local_path
            return
        with tempfile.TemporaryDirectory(prefix="perceiver-") as temporary:
            folder = Path(temporary) / self.name
            if self.is_dir():
                self.download_folder(folder)
            yield folder

    def _copy_files_to(self, folder: Path) -> None:
        folder.mkdir()
        for source, relative in self._files():
            target = folder / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())

    def _files(self) -> list[tuple[Storage, str]]:
        """Return the files at or below this place, each with its path relative to it ("" for a file itself)."""
        if not self.is_dir():
            return [(self, "")]
        infos = self.filesystem.get_file_info(pafs.FileSelector(self.path, recursive=True))
        paths = [info.path for info in infos if info.type == pafs.FileType.File]
        relative = [path.lstrip("/")[len(self.path.lstrip("/")) + 1 :] for path in paths]
        return [(self / name, name) for name in relative]

    def check_writable(self) -> None:
        """Raise a UserError unless files can be written below this folder, which is made if it is missing."""
        probe = self / f".writable-{uuid.uuid4().hex}"
        try:
            probe.write_bytes(b"?")
            probe.delete()
        except Exception as error:  # file systems raise errors of many kinds: missing keys, names, permissions
            message = f"storage_path '{self}' cannot be written ({_reason(error)}): choose another or mend it"
            raise UserError(message) from None


def _reason(error: BaseException) -> str:
    """Return what an error says in one short line, without the path that the caller names anyway."""
    if isinstance(error, FileExistsError | NotADirectoryError):
        return "there is a file where a folder has to be"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.splitlines()[0][:300]


def _with_time_limit(uri: str) -> str:
    """Keep Google's client from trying for 15 minutes where it is not allowed in."""
    if not uri.startswith(("gs://", "gcs://")) or "retry_limit_seconds" in uri:
        return uri
    return f"{uri}{'&' if '?' in uri else '?'}retry_limit_seconds=30"


def _replace_folder(target: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a new folder beside the target, and put it in the target's place when it is on the disk."""
    target.parent.mkdir(parents=True, exist_ok=True)
    new = target.with_name(f".{target.name}.{uuid.uuid4().hex}.new")
    old = target.with_name(f".{target.name}.{uuid.uuid4().hex}.old")
    try:
        write(new)
        for path in [*new.rglob("*"), new]:
            sync(path)
        if target.exists():
            target.rename(old)
        new.rename(target)
        sync(target.parent)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
