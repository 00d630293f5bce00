"""Writes a RAFS v6 bootstrap: one that the kernel's EROFS and any RAFS reader can mount (spec rafs-v6).

Owns     nothing: it fills a buffer that the caller provides.
Callers  build: plan first, which tells the size, then write.
Raises   BuildError if the tree outgrows the format.
"""

import stat
import struct

from nydusd.blob.model import CiLocation, Cipher, Codec
from nydusd.builder.blob_tail import BlobDescription
from nydusd.builder.chunk_record import chunk_record
from nydusd.builder.ledger import ChunkLedger
from nydusd.builder.options import BuildOptions
from nydusd.builder.superblock_flags import flags_of
from nydusd.builder.tree import BuildError, Node, Tree
from nydusd.builder.v6_space import ROOT_NID, Space, named_xattrs, names_of, xattr_size
from nydusd.rafs.blob_table_v6 import BLOB_ENTRY, DEVICE_SLOT, BlobEntry, DeviceSlot
from nydusd.rafs.erofs_parts import (
    BLOCK_BITS,
    CHUNK_BITS_MAX,
    FILE_TYPES,
    XATTR_AREA_MAX_BYTES,
    align,
    directory_blocks,
    index_offset,
    pack_directory_block,
    pack_xattrs,
    xattr_count,
)
from nydusd.rafs.layout_v5 import CHUNK
from nydusd.rafs.layout_v6 import (
    BLOCK_SIZE,
    CHUNK_FORMAT_INDEXES,
    CHUNK_INDEX,
    COMPAT_RAFS_V6,
    EROFS_MAGIC,
    EROFS_SUPERBLOCK,
    EXT_SUPERBLOCK,
    EXT_SUPERBLOCK_OFFSET,
    EXTENDED_INODE,
    FORMAT_EXTENDED,
    INCOMPAT_CHUNKED_DEVICES,
    LAYOUT_CHUNK_BASED,
    LAYOUT_FLAT_INLINE,
    LAYOUT_FLAT_PLAIN,
    NID_UNIT,
    SLOT_BYTES,
    SLOTS_OFFSET,
    SUPERBLOCK_OFFSET,
    ChunkIndex,
    ErofsSuperblock,
    ExtendedInode,
    ExtSuperblock,
)

MAPPED_ALIGN_BLOCKS = 128  # a blob starts on 512 KiB of the unified space, spec rafs-v6 §14
META_BLOCKS_MAX = 1 << 32


class BootstrapV6:
    """One image's bootstrap: laid out at construction, written once."""

    def __init__(
        self,
        tree: Tree,
        ledger: ChunkLedger,
        options: BuildOptions,
        prefetch: list[Node],
    ) -> None:
        """Give each node its nid. The chunks of all files must be in the ledger."""
        self._tree = tree
        self._ledger = ledger
        self._options = options
        self._prefetch = prefetch
        self._blobs = 1 if len(ledger) else 0
        self._space = Space()
        for node in tree.walk():
            if node.link_of is not None:
                node.number = node.link_of.number
                continue
            if xattr_size(node.xattrs) > XATTR_AREA_MAX_BYTES:
                raise BuildError(f"{node.relative_path!r}: more xattrs than an inode can hold")
            self._space.add(node)
        self._blob_table = BLOCK_SIZE
        self._prefetch_table = self._blob_table + self._blobs * BLOB_ENTRY.size_bytes
        self._inodes = align(self._prefetch_table + 4 * len(prefetch), BLOCK_SIZE)
        self._directories = align(self._inodes + self._space.inode_bytes, BLOCK_SIZE)
        self._chunk_table = self._directories + self._space.directory_blocks * BLOCK_SIZE
        end = self._chunk_table + len(ledger) * CHUNK.size_bytes
        self.size = max(align(end, BLOCK_SIZE), 2 * BLOCK_SIZE)
        if self.size // BLOCK_SIZE >= META_BLOCKS_MAX:
            raise BuildError("the metadata does not fit 16 TiB")
        # nid 0 means "none" to readers: the area starts one block before the root, spec rafs-v6 §9
        self._meta = self._inodes - BLOCK_SIZE

    def write(self, image: memoryview, blob: BlobDescription | None) -> None:
        """Fill `image`, which is `size` bytes of zeros. `blob`: None if no file has data."""
        self._write_superblocks(image, blob)
        if blob is not None:
            self._write_blob(image, blob)
        for position, node in enumerate(self._prefetch):
            struct.pack_into("<I", image, self._prefetch_table + 4 * position, node.number)
        for sequence, node in enumerate(self._tree.walk(), 1):
            if node.link_of is None:
                self._write_node(image, node, sequence)
        self._write_chunk_table(image)

    def _write_superblocks(self, image: memoryview, blob: BlobDescription | None) -> None:
        blocks = blob.uncompressed_size // BLOCK_SIZE if blob is not None else 0
        EROFS_SUPERBLOCK.pack_into(
            image,
            SUPERBLOCK_OFFSET,
            ErofsSuperblock(
                magic=EROFS_MAGIC,
                checksum=0,
                feature_compat=COMPAT_RAFS_V6,
                blkszbits=BLOCK_BITS,
                extslots=0,
                root_nid=ROOT_NID,
                inos=self._tree.names,
                blocks=blocks,
                meta_blkaddr=self._meta // BLOCK_SIZE,
                xattr_blkaddr=0,
                feature_incompat=INCOMPAT_CHUNKED_DEVICES,
                extra_devices=self._blobs,
                devt_slotoff=SLOTS_OFFSET // SLOT_BYTES,
            ),
        )
        listed = len(self._prefetch)
        EXT_SUPERBLOCK.pack_into(
            image,
            EXT_SUPERBLOCK_OFFSET,
            ExtSuperblock(
                flags=flags_of(self._options, has_xattrs=self._tree.has_xattrs),
                blob_table_offset=self._blob_table,
                blob_table_size=self._blobs * BLOB_ENTRY.size_bytes,
                chunk_size=self._options.chunk_size,
                chunk_table_offset=self._chunk_table,
                chunk_table_size=len(self._ledger) * CHUNK.size_bytes,
                prefetch_table_offset=self._prefetch_table if listed else 0,
                prefetch_table_size=4 * listed,
            ),
        )

    def _write_blob(self, image: memoryview, blob: BlobDescription) -> None:
        """Write the device slot and the blob table's entry, which name the same blob."""
        blob_id = blob.blob_id.encode()
        mapped = align(self.size // BLOCK_SIZE, MAPPED_ALIGN_BLOCKS)
        slot = DeviceSlot(blob_id, blob.uncompressed_size // BLOCK_SIZE, mapped)
        DEVICE_SLOT.pack_into(image, SLOTS_OFFSET, slot)
        ci = blob.ci or CiLocation(0, 0, 0, Codec.NONE)
        BLOB_ENTRY.pack_into(
            image,
            self._blob_table,
            BlobEntry(
                blob_id=blob_id,
                blob_index=0,
                chunk_size=self._options.chunk_size,
                chunk_count=blob.chunk_count,
                compression_algo=self._options.codec,
                digest_algo=self._options.digester,
                features=blob.features,
                compressed_size=blob.compressed_size,
                uncompressed_size=blob.uncompressed_size,
                blob_toc_size=blob.toc_size,
                ci_compressor=ci.codec,
                ci_offset=ci.offset,
                ci_compressed_size=ci.compressed_size,
                ci_uncompressed_size=ci.uncompressed_size,
                blob_toc_digest=blob.toc_digest,
                blob_meta_digest=b"",
                blob_meta_size=0,
                cipher_iv=b"",
                cipher_algo=Cipher.NONE,
            ),
        )

    def _write_node(self, image: memoryview, node: Node, sequence: int) -> None:
        """Write an inode with its xattrs, and what belongs to it: entries, target or chunk index."""
        offset = self._meta + node.number * NID_UNIT
        xattrs = xattr_size(node.xattrs)
        layout, word = LAYOUT_FLAT_PLAIN, 0
        if node.is_regular:
            layout, word = LAYOUT_CHUNK_BASED, self._chunk_format(node)
            self._write_chunk_index(image, offset + index_offset(xattrs), node)
        elif node.is_device:
            word = node.rdev & 0xFFFF_FFFF  # glibc's makedev and new_encode_dev agree, spec §7
        elif node.is_directory or node.is_symlink:
            place = self._space.place_of(node)
            block = self._directories + place.first_block * BLOCK_SIZE
            layout = LAYOUT_FLAT_INLINE if place.inline else LAYOUT_FLAT_PLAIN
            word = block // BLOCK_SIZE
            tail = offset + EXTENDED_INODE.size_bytes + xattrs if place.inline else None
            if node.is_directory:
                self._write_directory(image, node, block, tail)
            else:
                at = block if tail is None else tail
                image[at : at + node.size] = node.target
        seconds, nanoseconds = divmod(node.mtime_ns, 1_000_000_000)
        EXTENDED_INODE.pack_into(
            image,
            offset,
            ExtendedInode(
                i_format=FORMAT_EXTENDED | layout << 1,
                i_xattr_icount=xattr_count(xattrs),
                i_mode=node.mode,
                i_size=node.size,
                i_u=word,
                i_ino=sequence,
                i_uid=node.uid,
                i_gid=node.gid,
                i_mtime=seconds,
                i_mtime_nsec=nanoseconds,
                i_nlink=node.nlink,
            ),
        )
        if xattrs:
            area = pack_xattrs(named_xattrs(node.xattrs))
            start = offset + EXTENDED_INODE.size_bytes
            image[start : start + len(area)] = area

    def _write_directory(self, image: memoryview, node: Node, block: int, tail: int | None) -> None:
        """Write the blocks of a directory from file offset `block` on, the last at `tail` if inline."""
        parent = node.parent if node.parent is not None else node
        directory = FILE_TYPES[stat.S_IFDIR]
        entries = [
            (child.name, child.number, FILE_TYPES[child.mode & 0o170000])
            for child in node.children or ()
        ]
        entries += ((b".", node.number, directory), (b"..", parent.number, directory))
        entries.sort()
        blocks = directory_blocks(names_of(node))
        start = 0
        for position, (end, used) in enumerate(blocks):
            at = block + position * BLOCK_SIZE
            if tail is not None and position == len(blocks) - 1:
                at = tail
            image[at : at + used] = pack_directory_block(*zip(*entries[start:end], strict=True))
            start = end

    def _chunk_format(self, node: Node) -> int:
        """Return i_u of a regular file; of a contiguous one so that the kernel sees a single chunk."""
        bits = self._options.chunk_size.bit_length() - 1
        if node.chunk_count > 1 and self._is_contiguous(node):
            bits = max(bits, (node.size - 1).bit_length())
        return CHUNK_FORMAT_INDEXES | min(bits - BLOCK_BITS, CHUNK_BITS_MAX)

    def _is_contiguous(self, node: Node) -> bool:
        """Tell if the file's chunks follow each other in the plain address space (spec §11.1)."""
        ledger, first = self._ledger, node.first_chunk
        references = ledger.references
        before = references[first]
        for position in range(first + 1, first + node.chunk_count):
            number = references[position]
            if number != before + 1:
                return False
            before = number
        start = ledger.uncompressed_offset(references[first])
        span = (node.chunk_count - 1) * self._options.chunk_size
        return ledger.uncompressed_offset(before) - start == span

    def _write_chunk_index(self, image: memoryview, offset: int, node: Node) -> None:
        ledger = self._ledger
        first = node.first_chunk
        for number in ledger.references[first : first + node.chunk_count]:
            block = ledger.uncompressed_offset(number) // BLOCK_SIZE
            entry = ChunkIndex(number & 0xFFFF, device=1, ci_high=number >> 16, blkaddr=block)
            CHUNK_INDEX.pack_into(image, offset, entry)
            offset += CHUNK_INDEX.size_bytes

    def _write_chunk_table(self, image: memoryview) -> None:
        """Write a record per chunk, by digest (spec rafs-v6 §11.2)."""
        offset = self._chunk_table
        for number in self._ledger.in_digest_order():
            CHUNK.pack_into(image, offset, chunk_record(self._ledger, number))
            offset += CHUNK.size_bytes
