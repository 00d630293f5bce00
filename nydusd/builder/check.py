"""Walks a whole image through the readers that mounts use, and lists what breaks the format.

Owns     the mapped bootstrap while `check_image` runs.
Callers  cli.image_check, tests of the builder.
Raises   NydusError if the bootstrap cannot be opened at all. Every other fault is a line of the report.

Memory: two sets of directory numbers and one blob's chunk table; file contents only a few MiB at a time.
"""

import mmap
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from nydusd.blob.model import BlobFeature, BlobInfo, ChunkTable
from nydusd.builder.blob_files import BlobFiles, inlined_bootstrap
from nydusd.errors import FormatError, NydusError, UnsupportedError
from nydusd.rafs.bootstrap import inlining_blob_id, open_bootstrap, open_mapped, sniff_file
from nydusd.rafs.model import Bootstrap, Extent, Inode
from nydusd.units import GIB

FAULTS_KEPT = 20
EXTENT_STEP_BYTES = GIB  # file bytes per look at a chunk index: a sparse file may have millions


@dataclass(slots=True)
class CheckReport:
    """What an image holds and what is wrong with it."""

    version: int
    chunk_size: int
    blobs: tuple[BlobInfo, ...]
    directories: int = 0
    files: int = 0
    symlinks: int = 0
    special: int = 0
    xattrs: int = 0
    file_bytes: int = 0  # hard links counted per name
    chunk_references: int = 0
    chunks_verified: int = 0
    faults: list[str] = field(default_factory=list)  # the first FAULTS_KEPT
    fault_count: int = 0
    notices: list[str] = field(default_factory=list)  # what was not looked at, and why

    @property
    def is_valid(self) -> bool:
        """True if no fault was found."""
        return self.fault_count == 0

    def fault(self, where: str, why: object) -> None:
        """Note a fault."""
        self.fault_count += 1
        if len(self.faults) < FAULTS_KEPT:
            if isinstance(why, FormatError):  # without its source: that is the image itself
                why = f"{why.field} is {why.value}, {why.rule}"
            self.faults.append(f"{where}: {why}")


def check_image(
    bootstrap: Path,
    blobs: BlobFiles | None = None,
    *,
    verify: bool = False,
    on_path: Callable[[bytes, Inode], None] | None = None,
) -> CheckReport:
    """Check the image whose metadata is in `bootstrap`, or in the blob of that name.

    With `blobs` their chunk records are checked too, with `verify` every chunk is decoded and compared
    with its digest. `on_path` is told each path and its inode.
    """
    with _opened(bootstrap) as image:
        report = CheckReport(image.superblock.version, image.superblock.chunk_size, image.blobs)
        tables = [_chunk_table(image, info, blobs, report) for info in image.blobs]
        _Walk(image, tables, report, on_path).run()
        _check_prefetch(image, report)
        if blobs is not None:
            for info, table in zip(image.blobs, tables, strict=True):
                if table is not None:
                    skipped = blobs.check_chunks(info, table, report.fault, verify=verify)
                    if skipped:
                        report.notices.append(f"blob {info.blob_id}: {skipped}")
            report.chunks_verified = blobs.verified
        return report


@contextmanager
def _opened(path: Path) -> Iterator[Bootstrap]:
    """Open a bootstrap, from its own file or from the blob that contains it (spec blob §3)."""
    if sniff_file(path) is not None:
        image = open_bootstrap(path)
        try:
            yield image
        finally:
            image.close()
        return
    with inlined_bootstrap(path) as plain, mmap.mmap(-1, len(plain)) as data:
        data.write(plain)
        yield open_mapped(data, str(path), extracted_from=inlining_blob_id(path))


def _chunk_table(
    image: Bootstrap, info: BlobInfo, blobs: BlobFiles | None, report: CheckReport
) -> ChunkTable | None:
    """Return a blob's chunks where they can be had; a fault is noted, not raised."""
    try:
        table = image.chunk_table(info.index)
        if table is not None:
            return table
        digests = image.digests(info.index)
        if digests is None and BlobFeature.TARFS not in info.features:
            report.notices.append(
                f"blob {info.blob_id}: the image has no chunk table, so no digests"
            )
        if info.ci is None:
            report.notices.append(f"blob {info.blob_id} has no chunk records: not checked")
        elif blobs is not None:
            return blobs.chunk_table(info, digests)
    except UnsupportedError as exc:
        report.notices.append(f"{exc}: not checked")
    except NydusError as exc:
        report.fault(f"blob {info.blob_id}", exc)
    return None


def _check_prefetch(image: Bootstrap, report: CheckReport) -> None:
    for ino in image.prefetch_inodes():
        try:
            image.inode(ino)
        except NydusError as exc:
            report.fault("prefetch table", exc)


class _Walk:
    """One walk over all names."""

    def __init__(
        self,
        image: Bootstrap,
        tables: Sequence[ChunkTable | None],
        report: CheckReport,
        on_path: Callable[[bytes, Inode], None] | None,
    ) -> None:
        self._image = image
        self._tables = tables
        self._report = report
        self._on_path = on_path
        self._entered: set[int] = set()  # directories

    def run(self) -> None:
        """Visit everything below the root, each directory once."""
        try:
            root = self._image.inode(self._image.root_ino)
        except NydusError as exc:
            self._report.fault("/", exc)
            return
        if not stat.S_ISDIR(root.mode):
            self._report.fault("/", f"mode {root.mode:o} is not that of a directory")
            return
        pending = [(b"", root, root)]
        self._visit(b"/", root)
        while pending:
            path, directory, parent = pending.pop()
            if directory.ino in self._entered:
                self._report.fault(_text(path), "the directory is met twice: a loop")
                continue
            self._entered.add(directory.ino)
            below = self._directory(path, directory, parent)
            pending.extend((child_path, child, directory) for child_path, child in reversed(below))

    def _directory(self, path: bytes, directory: Inode, parent: Inode) -> list[tuple[bytes, Inode]]:
        """Check the entries of a directory and return those that are directories."""
        image, below = self._image, []
        before: bytes | None = None
        try:
            for entry in image.entries(directory):
                name = entry.name
                if name in (b".", b".."):
                    wanted = directory if name == b"." else parent
                    if entry.ino != wanted.ino:
                        self._report.fault(
                            _text(path), f"{_text(name)} is inode {entry.ino}, not {wanted.ino}"
                        )
                    continue
                where = path + b"/" + name
                if before is not None and name <= before:
                    self._report.fault(_text(where), "the names of its directory are not sorted")
                before = name
                child = self._child(directory, where, name, entry.ino)
                if child is not None and stat.S_ISDIR(child.mode):
                    below.append((where, child))
        except NydusError as exc:
            self._report.fault(_text(path), exc)
        return below

    def _child(self, directory: Inode, where: bytes, name: bytes, ino: int) -> Inode | None:
        """Look a name up as a mount would, and check what it finds."""
        try:
            child = self._image.lookup(directory, name)
        except NydusError as exc:
            self._report.fault(_text(where), exc)
            return None
        if child is None or child.ino != ino:
            found = "nothing" if child is None else f"inode {child.ino}"
            self._report.fault(_text(where), f"a look-up finds {found}, the entry says {ino}")
            return None
        self._visit(where, child)
        return child

    def _visit(self, where: bytes, inode: Inode) -> None:
        """Check one inode and count it."""
        report = self._report
        if self._on_path is not None:
            self._on_path(where, inode)
        try:
            report.xattrs += len(self._image.xattrs(inode))
            if stat.S_ISDIR(inode.mode):
                report.directories += 1
            elif stat.S_ISREG(inode.mode):
                report.files += 1
                report.file_bytes += inode.size
                self._check_extents(inode)
            elif stat.S_ISLNK(inode.mode):
                report.symlinks += 1
                self._image.readlink(inode)
            else:
                report.special += 1
        except NydusError as exc:
            report.fault(_text(where), exc)

    def _check_extents(self, inode: Inode) -> None:
        """Compare the chunks that a file claims with the blobs' records."""
        if not inode.size:
            return
        self._image.extents(inode, inode.size - 1, 1)  # the end first: a wrong size shows at once
        for offset in range(0, inode.size, EXTENT_STEP_BYTES):
            position = offset
            for extent in self._image.extents(inode, offset, EXTENT_STEP_BYTES):
                self._check_extent(extent)
                position += extent.length
            wanted = min(offset + EXTENT_STEP_BYTES, inode.size)
            if position != wanted:
                raise FormatError("file data", f"{position} bytes", f"must be {wanted}")

    def _check_extent(self, extent: Extent) -> None:
        self._report.chunk_references += 1
        table = self._tables[extent.blob_index]
        if table is None:
            info = self._report.blobs[extent.blob_index]
            if 0 < info.chunk_count <= extent.chunk_index:
                rule = f"the blob has {info.chunk_count}"
                raise FormatError("chunk index", extent.chunk_index, rule)
            return
        if self._report.version == 5:
            table.chunk(extent.chunk_index)  # the only place where a v5 record is looked at
        offset, size = table.claim(extent.chunk_index)
        if (offset, size) != (extent.chunk_offset, extent.chunk_size):
            claim = f"{extent.chunk_size} bytes at {extent.chunk_offset}"
            rule = f"its record has {size} at {offset}"
            raise FormatError(f"chunk {extent.chunk_index}", claim, rule)


def _text(path: bytes) -> str:
    """Return a path for a message: printable, in one line."""
    return (path or b"/").decode("utf-8", "backslashreplace").encode("unicode_escape").decode()
