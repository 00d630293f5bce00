"""One image: its metadata joined to the blobs that hold its data.

The only place that turns (inode, offset, size) into bytes; both the tree frontend and tools read here.
"""
