"""The doors to the kernel: the FUSE session, the tree it shows, many mounts in one session."""
