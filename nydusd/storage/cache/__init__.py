"""The cache directory on disk, byte-compatible with the reference's (spec blobcache)."""
