"""Files that are whole or absent: atomic writes, and folders with a manifest of checksums."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import uuid
from pathlib import Path
from typing import Any

from perceiver.errors import UserError

MANIFEST = "manifest.json"


class DamagedFolderError(UserError):
    """A folder that lacks its manifest, or does not hold what its manifest says."""


def write_atomic(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file so that a reader, or a crash at any moment, finds the old content or the new one.

    Args:
        path: File to write; missing parent folders are made.
        data: The new content.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(target.parent)


def is_full(error: BaseException) -> bool:
    """Tell whether an error, of the operating system or of a library that passes its words on, is a lack of space."""
    text = os.strerror(errno.ENOSPC)
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or text in str(error)


def sync(path: str | os.PathLike[str]) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's content in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: str | os.PathLike[str], /, **facts: Any) -> None:
    """Seal a folder: write manifest.json with size and checksum of every file in it, after they are on the disk.

    Args:
        folder: Folder whose files, at any depth, are complete.
        facts: What else the manifest says; JSON values under any name but `files`.
    """
    assert "files" not in facts, "the manifest's own list is called files"
    root = Path(folder)
    files = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_dir():
            sync(path)
        elif name != MANIFEST:
            sync(path)
            files[name] = {"sha256": sha256_file(path), "size": path.stat().st_size}
    content = json.dumps({**facts, "files": files}, indent=2, allow_nan=False)
    write_atomic(root / MANIFEST, content.encode())


def read_manifest(folder: str | os.PathLike[str], verify: bool = True) -> dict[str, Any]:
    """Return a folder's manifest after checking the folder against it.

    Args:
        folder: Folder that `write_manifest` sealed.
        verify: Whether the checksums are computed too; presence and size of the files always are.

    Raises:
        DamagedFolderError: The manifest is missing or unreadable, or a file is missing, truncated or altered.
    """
    root = Path(folder)
    try:
        manifest: dict[str, Any] = json.loads((root / MANIFEST).read_bytes())
        expected = {name: (entry["size"], entry["sha256"]) for name, entry in manifest["files"].items()}
    except OSError:
        raise DamagedFolderError(f"{root} has no readable {MANIFEST}: it is incomplete, write it again") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DamagedFolderError(f"{root / MANIFEST} is not a manifest: write the folder again") from None
    for name, (size, digest) in expected.items():
        _check_file(root / name, size, digest if verify else None)
    return manifest


def folder_digest(folder: str | os.PathLike[str], without: str = "", verify: bool = True) -> str:
    """Return what tells a sealed folder from one with other content: a sha256 over the manifest's entries.

    Args:
        folder: Folder that `write_manifest` sealed.
        without: A file that doesn't count.
        verify: See `read_manifest`.

    Raises:
        DamagedFolderError: See `read_manifest`.
    """
    files = {name: entry for name, entry in read_manifest(folder, verify)["files"].items() if name != without}
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _check_file(path: Path, size: int, digest: str | None) -> None:
    if not path.is_file():
        raise DamagedFolderError(f"{path} is missing: write or copy its folder again")
    found = path.stat().st_size
    if found != size:
        raise DamagedFolderError(f"{path} has {found} bytes, not {size}: write or copy its folder again")
    if digest is not None and sha256_file(path) != digest:
        raise DamagedFolderError(f"{path} was altered after it was written: write or copy its folder again")
