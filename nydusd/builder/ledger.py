"""The chunks of the blob being written, each kept once (spec blob §8, rafs-v5 §7).

Owns     columns of plain numbers, some 300 bytes per distinct chunk with its look-up entry, and four
         bytes per reference of a file to a chunk.
Callers  the thread that writes the blob adds; worker threads only ask `position_of`.
Raises   BuildError where a field of the format would overflow.
"""

from array import array
from typing import NamedTuple

from nydusd.blob.model import DIGEST_BYTES
from nydusd.builder.tree import BuildError

CHUNKS_MAX = (1 << 24) - 1  # 24-bit index, spec rafs-v6 §11.1
COMPRESSED_MAX_BYTES = 1 << 40  # 40-bit offset, spec blob §8
UNCOMPRESSED_MAX_BYTES = 1 << 44  # spec blob §8
ALIGNMENT = 4096  # of a chunk in the plain address space of v6, spec blob §5


class ChunkRow(NamedTuple):
    """One chunk, as both formats want it."""

    digest: bytes
    crc32: int
    compressed_offset: int
    compressed_size: int
    uncompressed_offset: int
    uncompressed_size: int
    is_compressed: bool
    file_offset: int  # in the file that brought the chunk


class ChunkLedger:
    """Distinct chunks by number, and which file refers to which."""

    def __init__(self, *, aligned: bool) -> None:
        """`aligned`: chunks start on 4 KiB of the plain address space."""
        self._aligned = aligned
        self._positions: dict[bytes, int] = {}
        self._digests = bytearray()
        self._crcs = array("I")
        self._compressed_offsets = array("Q")
        self._compressed_sizes = array("I")
        self._uncompressed_offsets = array("Q")
        self._uncompressed_sizes = array("I")
        self._raw = bytearray()  # 1: stored as it is
        self._file_offsets = array("Q")
        self.references = array("I")  # chunk numbers, file after file
        self.compressed_size = 0
        self.uncompressed_size = 0  # of the plain address space so far, alignment included
        self.dedup_chunks = 0
        self.dedup_bytes = 0

    def __len__(self) -> int:
        """Number of distinct chunks."""
        return len(self._crcs)

    def position_of(self, digest: bytes) -> int | None:
        """Return the number of the chunk with this digest. Safe from any thread: one dict access."""
        return self._positions.get(digest)

    def add(
        self,
        digest: bytes,
        crc32: int,
        compressed_size: int,
        uncompressed_size: int,
        file_offset: int,
        *,
        is_compressed: bool,
    ) -> int:
        """Take in a new chunk behind the last one and return its number."""
        number = len(self._crcs)
        if number >= CHUNKS_MAX:
            raise BuildError(
                f"more than {CHUNKS_MAX} different chunks: choose a larger --chunk-size"
            )
        self._positions[digest] = number
        self._digests += digest
        self._crcs.append(crc32)
        self._compressed_offsets.append(self.compressed_size)
        self._compressed_sizes.append(compressed_size)
        self._uncompressed_offsets.append(self.uncompressed_size)
        self._uncompressed_sizes.append(uncompressed_size)
        self._raw.append(not is_compressed)
        self._file_offsets.append(file_offset)
        self.compressed_size += compressed_size
        end = self.uncompressed_size + uncompressed_size
        self.uncompressed_size = (
            (end + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT if self._aligned else end
        )
        if (
            self.compressed_size >= COMPRESSED_MAX_BYTES
            or self.uncompressed_size >= UNCOMPRESSED_MAX_BYTES
        ):
            raise BuildError("the data does not fit one blob (1 TiB stored, 16 TiB plain)")
        return number

    def refer(self, number: int, times: int = 1) -> None:
        """Note that the file being read continues with this chunk, `times` times."""
        if times == 1:
            self.references.append(number)
        else:
            self.references.extend(array("I", (number,)) * times)

    def count_duplicates(self, times: int, size: int) -> None:
        """Keep the account of what was not stored again."""
        self.dedup_chunks += times
        self.dedup_bytes += times * size

    def row(self, number: int) -> ChunkRow:
        """Return chunk `number`."""
        return ChunkRow(
            bytes(self._digests[number * DIGEST_BYTES : (number + 1) * DIGEST_BYTES]),
            self._crcs[number],
            self._compressed_offsets[number],
            self._compressed_sizes[number],
            self._uncompressed_offsets[number],
            self._uncompressed_sizes[number],
            not self._raw[number],
            self._file_offsets[number],
        )

    def uncompressed_offset(self, number: int) -> int:
        """Return where chunk `number` starts in the plain address space."""
        return self._uncompressed_offsets[number]

    def uncompressed_length(self, number: int) -> int:
        """Return the plain size of chunk `number`."""
        return self._uncompressed_sizes[number]

    def digest(self, number: int) -> bytes:
        """Return the digest of chunk `number`."""
        return bytes(self._digests[number * DIGEST_BYTES : (number + 1) * DIGEST_BYTES])

    @property
    def digests(self) -> bytes:
        """All digests, in order of chunk number (the `blob.digest` segment, spec blob §2)."""
        return bytes(self._digests)

    def in_digest_order(self) -> list[int]:
        """Return all chunk numbers sorted by digest, the order of the v6 chunk table."""
        return [number for _, number in sorted(self._positions.items())]
