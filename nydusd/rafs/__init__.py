"""Image metadata (RAFS v5 and v6 bootstraps). Pure: a mapped file in, inodes and extents out."""
