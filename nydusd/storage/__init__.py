"""The one read path: blobs that fill themselves on demand, their cache on disk, where they come from."""
