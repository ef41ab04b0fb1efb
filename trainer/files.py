"""Durable files: the only place that fsyncs, renames and removes.

A name appears in a folder only when what it names is whole and on the disk: write under another name, fsync, rename,
fsync the folder. Everything that must survive a crash goes through here, so that tests have one seam to fail at.
"""

import errno
import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO

PACKAGE = Path(__file__).resolve().parent
"""The folder of this package."""


def checkout_folder() -> Path | None:
    """The checkout that this package lies in; None where it was installed from a wheel."""
    checkout = PACKAGE.parent
    return checkout if (checkout / "setup.cfg").is_file() else None


def project_folder() -> Path:
    """The folder that relative paths of a recipe are meant from: the checkout, or the current folder for an installed wheel."""
    return checkout_folder() or Path.cwd()


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    """The number of a file or folder that is open for the block."""
    descriptor = os.open(path, flags, 0o644)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def fsync_file(path: Path) -> None:
    """Waits until a file's bytes are on the disk."""
    with _opened(path, os.O_RDONLY) as descriptor:
        os.fsync(descriptor)


def fsync_folder(path: Path) -> None:
    """Waits until a folder's entries (names made, renamed or removed) are on the disk."""
    with _opened(path, os.O_RDONLY | os.O_DIRECTORY) as descriptor:
        os.fsync(descriptor)


@contextmanager
def atomic_file(path: Path, partial_in: Path | None = None) -> Iterator[BinaryIO]:
    """A binary file that appears under `path` whole and durable when the block ends, or not at all when it raises.

    partial_in  another folder of the same disk for the file while it is written, where its own must hold nothing else
    """
    path = Path(path)
    partial = (partial_in or path.parent) / f".{path.name}.partial-{os.getpid()}"
    try:
        with open(partial, "wb") as file:
            yield file
            fsync_open_file(file)
        os.replace(partial, path)
        fsync_folder(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_atomic(path: Path, content: bytes | str, partial_in: Path | None = None) -> None:
    """Replaces a file's content in one step that a crash cannot divide."""
    with atomic_file(path, partial_in) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def move_file(source: Path, target: Path) -> None:
    """Gives a durable file its final name, in place of one that has it, and makes the name durable."""
    os.replace(source, target)
    fsync_folder(target.parent)


def move_folder(source: Path, target: Path) -> None:
    """Renames a folder beside its parent and makes the new name durable. The target must not exist: nothing is replaced."""
    if target.exists():
        raise FileExistsError(f"{target} exists already, and a folder is never replaced")
    os.rename(source, target)
    fsync_folder(target.parent)


def commit_folder(staging: Path, final: Path) -> None:
    """Makes everything in `staging` durable, then gives it its final name: from that rename on it exists."""
    for path in sorted(staging.rglob("*")):
        fsync_folder(path) if path.is_dir() else fsync_file(path)
    fsync_folder(staging)
    move_folder(staging, final)


def remove_folder(path: Path) -> None:
    """Removes a folder in two steps: a name nobody takes for a whole one (it starts with a dot) first, then the content."""
    doomed = path if path.name.startswith(".") else path.with_name(f".removing-{path.name}")
    if doomed != path:
        remove_folder(doomed) if doomed.exists() else None
        os.rename(path, doomed)
        fsync_folder(path.parent)
    shutil.rmtree(doomed)


def set_aside(path: Path, reason: str) -> Path:
    """Takes a folder out of sight under `.REASON-NAME[-n]`, keeping its content; returns the new path."""
    target = path.with_name(f".{reason}-{path.name}")
    number = 1
    while target.exists():
        number += 1
        target = path.with_name(f".{reason}-{path.name}-{number}")
    move_folder(path, target)
    return target


def point_symlink(link: Path, target_name: str) -> None:
    """Points a symbolic link at a name beside it, in one step."""
    partial = link.with_name(f".{link.name}.partial-{os.getpid()}")
    partial.unlink(missing_ok=True)
    partial.symlink_to(target_name)
    os.replace(partial, link)


def follow_umask(folder: Path) -> None:
    """Gives every file in a folder the mode that a new file of this process has; some libraries make theirs readable by the owner alone."""
    mode = 0o666 & ~_umask()
    for path in folder.rglob("*"):
        if path.is_file():
            os.chmod(path, mode)


def _umask() -> int:
    """The umask of this process. Asked of the system: setting it, the only other way, would show in what other threads write meanwhile."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"^Umask:\s*([0-7]+)", status, re.MULTILINE)
    assert found is not None, "Linux states it since 4.7"
    return int(found[1], 8)


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def free_bytes(path: Path) -> int:
    """Bytes an ordinary user can still write where `path` is or will be."""
    existing = Path(path).resolve()
    while not existing.exists():
        existing = existing.parent
    return shutil.disk_usage(existing).free


def fsync_open_file(file: IO) -> None:
    """Waits until what was written to an open file is on the disk."""
    file.flush()
    os.fsync(file.fileno())


def append_lines(path: Path, lines: Iterable[str]) -> None:
    """Adds whole lines to a file, durably; a last line that a crash cut short is ended before them, not continued."""
    with open(path, "a+b") as file:
        if file.seek(0, os.SEEK_END) and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
            file.write(b"\n")
        file.writelines(f"{line}\n".encode() for line in lines)
        fsync_open_file(file)
    fsync_folder(path.parent)


def append_line(path: Path, line: str) -> None:
    """Adds one line in one write that no other process's line can divide, without waiting for the disk.

    A last line that was cut short is ended before it, not continued. One that another process is writing at this instant looks
    so too: then an empty line stands between the two.

    raises  OSError when it could not be written, or only a part of it
    """
    with _opened(path, os.O_RDWR | os.O_APPEND | os.O_CREAT) as descriptor:
        end = os.lseek(descriptor, 0, os.SEEK_END)
        is_cut = end > 0 and os.pread(descriptor, 1, end - 1) != b"\n"
        content = f"{chr(10) if is_cut else ''}{line}\n".encode()
        if os.write(descriptor, content) < len(content):
            raise OSError(errno.ENOSPC, "only a part of a line could be written", str(path))


def forget_cached(path: Path) -> None:
    """Asks the system to forget what it holds of a file in memory, so that the next read comes from the disk; fsync first."""
    with _opened(path, os.O_RDONLY) as descriptor:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def truncate_file(path: Path, num_bytes: int) -> None:
    """Cuts a file's end off, durably."""
    with open(path, "r+b") as file:
        file.truncate(num_bytes)
        fsync_open_file(file)


_BLOCK_BYTES = 8 << 20


def write_pages(path: Path, pages: memoryview, num_bytes: int, before_block: Callable[[int, int], None]) -> None:
    """Writes the first `num_bytes` of page-aligned memory to a new file, past the page cache where the disk can, durably.

    pages         whole pages of 4,096 bytes, at least `num_bytes` of them
    before_block  called with start and end of each block before it is written: it may still change the block
    """
    descriptor = _open_direct(path)
    try:
        for start in range(0, len(pages), _BLOCK_BYTES):
            end = min(start + _BLOCK_BYTES, len(pages))
            before_block(start, min(end, num_bytes))
            _write_all(descriptor, pages[start:end], start)
        os.ftruncate(descriptor, num_bytes)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _open_direct(path: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    try:
        return os.open(path, flags | os.O_DIRECT, 0o644)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        path.unlink(missing_ok=True)  # a memory file system, say, makes the file before it refuses the flag
        return os.open(path, flags, 0o644)


def _write_all(descriptor: int, block: memoryview, position: int) -> None:
    """Writes a block whole; where the disk takes it only through the page cache after all, or in odd pieces, through that."""
    while block:
        try:
            written = os.pwrite(descriptor, block, position)
        except OSError as error:
            direct = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT
            if error.errno != errno.EINVAL or not direct:
                raise
            fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) & ~os.O_DIRECT)
            continue
        block, position = block[written:], position + written
