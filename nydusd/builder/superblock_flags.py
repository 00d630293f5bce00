"""The flag word of a superblock, which both formats share (spec rafs-v5 §3, rafs-v6 §4)."""

from nydusd.blob.model import Codec, Digester
from nydusd.builder.options import BuildOptions
from nydusd.rafs.model import SuperblockFlag

_COMPRESSION = {
    Codec.NONE: SuperblockFlag.COMPRESSION_NONE,
    Codec.LZ4_BLOCK: SuperblockFlag.COMPRESSION_LZ4,
    Codec.ZSTD: SuperblockFlag.COMPRESSION_ZSTD,
}
_HASH = {
    Digester.BLAKE3: SuperblockFlag.HASH_BLAKE3,
    Digester.SHA256: SuperblockFlag.HASH_SHA256,
}


def flags_of(options: BuildOptions, *, has_xattrs: bool) -> SuperblockFlag:
    """Return s_flags of an image built with these options."""
    flags = _COMPRESSION[options.codec] | _HASH[options.digester] | SuperblockFlag.EXPLICIT_UID_GID
    if has_xattrs:
        flags |= SuperblockFlag.HAS_XATTR
    if options.fs_version == 6:
        flags |= SuperblockFlag.ENCRYPTION_NONE
    if options.blob_toc:
        flags |= SuperblockFlag.INLINED_CHUNK_DIGEST
    return flags
