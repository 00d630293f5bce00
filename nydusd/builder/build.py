"""Builds an image from a directory: one data blob and its bootstrap.

Owns     the order of the steps, the temporary files and their final names. A build that fails leaves
         nothing behind; one that succeeds replaces files of the same name.
Callers  cli.image, demo, tests, benchmarks.
Raises   BuildError (the tree or a file in it), ConfigError, OSError of the output files.
Cancel   not cancellable; KeyboardInterrupt removes the temporary files.

Memory: some 400 bytes per name, 300 per distinct chunk, and a few batches of file data; the bootstrap
is written through a mapping of its file.
"""

import hashlib
import logging
import mmap
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from io import BufferedRandom, FileIO
from pathlib import Path

from nydusd.builder.blob_tail import UNKNOWN_BLOB_ID, BlobDescription, BlobWriter
from nydusd.builder.bootstrap_v5 import BootstrapV5
from nydusd.builder.bootstrap_v6 import BootstrapV6
from nydusd.builder.chunk_stream import ChunkStream
from nydusd.builder.ledger import ChunkLedger
from nydusd.builder.options import BuildOptions, BuildResult, PrefetchPolicy
from nydusd.builder.tree import Node, Tree, scan
from nydusd.errors import ConfigError
from nydusd.units import MIB

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]  # phase, done, total (0: not known)

SCAN, DATA, METADATA = "scan", "data", "metadata"  # phases, as Progress names them
WRITE_BUFFER_BYTES = MIB
FILE_MODE = 0o644


def build_image(
    source: Path,
    options: BuildOptions,
    bootstrap: Path | None = None,
    blob_dir: Path | None = None,
    progress: Progress | None = None,
    *,
    blob_file: Path | None = None,
) -> BuildResult:
    """Build the image of directory `source` and return what was written.

    The blob goes into `blob_dir` under its id, or to `blob_file`. The bootstrap goes to `bootstrap`,
    without one into `blob_dir` under its SHA-256; with `inline_meta` it is part of the blob.
    """
    if (blob_dir is None) == (blob_file is None):
        raise ConfigError("either a folder for blobs or a blob file must be given")
    if bootstrap is None and blob_dir is None and not options.inline_meta:
        raise ConfigError("a bootstrap path must be given along with a blob file")
    for path in filter(None, (bootstrap, blob_file)):
        if path.is_dir():
            raise ConfigError(f"{path}: is a folder, a file name must be given")
    return _Build(source, options, bootstrap, blob_dir, blob_file, progress).run()


class _Build:
    """One build: what the steps hand on to each other."""

    def __init__(
        self,
        source: Path,
        options: BuildOptions,
        bootstrap: Path | None,
        blob_dir: Path | None,
        blob_file: Path | None,
        progress: Progress | None,
    ) -> None:
        self._source = os.fsencode(source)
        self._options = options
        self._bootstrap = bootstrap
        self._blob_dir = blob_dir
        self._blob_file = blob_file
        self._progress = progress
        self._seconds: dict[str, float] = {}

    def run(self) -> BuildResult:
        """Do it all."""
        options = self._options
        with self._phase(SCAN):
            tree = scan(self._source, options.whiteout_spec, self._reporter(SCAN, 0))
        _log_left_out(tree)
        prefetch = _prefetch_nodes(tree, options)
        ledger = ChunkLedger(aligned=options.fs_version == 6 or options.aligned_chunk)
        with _temporary(self._blob_folder()) as blob_file, ExitStack() as stack:
            writer = BlobWriter(blob_file.file, options)
            with self._phase(DATA):
                prefetch_size = self._write_data(tree, prefetch, ledger, writer)
            with self._phase(METADATA):
                listed = prefetch if options.prefetch_policy is PrefetchPolicy.FS else []
                kind = BootstrapV6 if options.fs_version == 6 else BootstrapV5
                plan = kind(tree, ledger, options, listed)
                bootstrap = self._finish(plan, ledger, writer, prefetch_size, stack)
            blob_id = options.blob_id or writer.sha256
            blob_path = self._blob_file or (self._blob_dir or Path()) / blob_id
            if writer.position:
                blob_file.keep(blob_path)
            bootstrap_path = bootstrap.keep_as(self._bootstrap) if bootstrap is not None else ""
        return BuildResult(
            bootstrap=bootstrap_path,
            blob_ids=(blob_id,) if writer.position else (),
            blob_path=str(blob_path) if writer.position else "",
            blob_size=writer.position,
            compressed_size=ledger.compressed_size,
            uncompressed_size=ledger.uncompressed_size,
            inodes=tree.names,
            chunks=len(ledger),
            dedup_chunks=ledger.dedup_chunks,
            dedup_bytes=ledger.dedup_bytes,
            source_bytes=tree.source_bytes,
            seconds=self._seconds,
        )

    def _write_data(
        self, tree: Tree, prefetch: list[Node], ledger: ChunkLedger, writer: BlobWriter
    ) -> int:
        """Write the chunks of all files, those to be fetched early first; return the bytes of these."""
        early = dict.fromkeys(_files_below(prefetch))
        rest = (
            node for node in tree.walk() if node.is_regular and node.size and node.link_of is None
        )
        rest = (node for node in rest if node not in early) if early else rest
        report = self._reporter(DATA, tree.source_bytes)
        with ChunkStream(self._source, self._options, ledger, writer.write, report) as stream:
            stream.add(early)
            prefetch_size = ledger.compressed_size
            stream.add(rest)
        return prefetch_size if self._options.prefetch_policy is PrefetchPolicy.BLOB else 0

    def _finish(
        self,
        plan: BootstrapV6 | BootstrapV5,
        ledger: ChunkLedger,
        writer: BlobWriter,
        prefetch_size: int,
        stack: ExitStack,
    ) -> "_Temporary | None":
        """Close the blob and write the bootstrap; return its file, None if it went into the blob."""
        has_data = len(ledger) > 0
        if has_data or self._options.inline_meta:
            writer.end_data(ledger)
        if self._options.inline_meta:
            blob_id = self._options.blob_id or UNKNOWN_BLOB_ID
            blob = writer.describe(ledger, prefetch_size, blob_id) if has_data else None
            with mmap.mmap(-1, plan.size) as image:
                _render(plan, image, blob)
                with memoryview(image) as view:
                    writer.bootstrap(view)
            writer.end()
            return None
        blob = None
        if has_data:
            writer.end()
            blob_id = self._options.blob_id or writer.sha256
            blob = writer.describe(ledger, prefetch_size, blob_id)
        target = stack.enter_context(_temporary(self._bootstrap_folder()))
        # Reserved first: on a full disk a store into the mapping would kill the process.
        os.posix_fallocate(target.file.fileno(), 0, plan.size)
        with mmap.mmap(target.file.fileno(), plan.size) as image:
            _render(plan, image, blob)
        return target

    def _blob_folder(self) -> Path:
        if self._blob_dir is None:
            return (self._blob_file or Path()).parent
        self._blob_dir.mkdir(parents=True, exist_ok=True)
        return self._blob_dir

    def _bootstrap_folder(self) -> Path:
        return self._bootstrap.parent if self._bootstrap is not None else self._blob_folder()

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        """Measure a phase and show its start and end."""
        start = time.monotonic()
        if self._progress is not None:
            self._progress(name, 0, 0)
        yield
        self._seconds[name] = time.monotonic() - start

    def _reporter(self, phase: str, total: int) -> Callable[[int], None] | None:
        progress = self._progress
        if progress is None:
            return None
        return lambda done: progress(phase, done, total)


class _Temporary:
    """A file without its final name yet."""

    def __init__(self, path: Path, file: BufferedRandom) -> None:
        self._path = path
        self.file = file

    def keep(self, path: Path) -> None:
        """Give the file its name, replacing what has it."""
        self.file.flush()
        os.fchmod(self.file.fileno(), FILE_MODE)
        self._path.replace(path)

    def keep_as(self, path: Path | None) -> str:
        """Do the same and return the path; without one the name is the SHA-256 of the content."""
        if path is None:
            self.file.seek(0)
            digest = hashlib.file_digest(self.file, "sha256")
            path = self._path.parent / digest.hexdigest()
        self.keep(path)
        return str(path)


@contextmanager
def _temporary(folder: Path) -> Iterator[_Temporary]:
    """Make a file that is removed at the end, unless it is kept.

    Its name is chosen, and guarded, before there is a file: an interrupt may come at any point.
    """
    path = folder / f".nydus-image-{secrets.token_hex(8)}"
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with BufferedRandom(FileIO(handle, "r+b"), WRITE_BUFFER_BYTES) as file:
            yield _Temporary(path, file)
    finally:
        path.unlink(missing_ok=True)


def _render(
    plan: BootstrapV6 | BootstrapV5, image: mmap.mmap, blob: BlobDescription | None
) -> None:
    with memoryview(image) as view:
        plan.write(view, blob)


def _files_below(nodes: Iterable[Node]) -> Iterator[Node]:
    """Yield the files with data below `nodes`, depth first."""
    for start in nodes:
        stack = [start]
        while stack:
            node = stack.pop()
            if node.children is not None:
                stack.extend(reversed(node.children))
            elif node.is_regular and node.size:
                yield node.link_of or node


def _prefetch_nodes(tree: Tree, options: BuildOptions) -> list[Node]:
    """Return the nodes that the prefetch list names, in its order; names that are not there are logged."""
    if options.prefetch_policy is PrefetchPolicy.NONE:
        return []
    found: dict[Node, None] = {}
    for path in options.prefetch_paths:
        node = tree.find(path) if path.startswith(b"/") else None
        if node is None:
            log.warning("prefetch path=%s is not in the image", os.fsdecode(path))
        else:
            found[node.link_of or node] = None
    return list(found)


def _log_left_out(tree: Tree) -> None:
    if tree.whiteouts:
        log.info("whiteouts=%d left out: a single layer hides nothing", tree.whiteouts)
    if tree.foreign_xattrs:
        log.warning("xattrs=%d left out: an image cannot name them", tree.foreign_xattrs)
