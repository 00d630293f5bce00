"""Names of any depth: a path prefix under which the entries of a directory can be opened.

Owns     nothing that outlives a `with`.
Callers  the scan and the reader of file contents, one thread.
Raises   OSError, as open(2) gives it.

A path longer than PATH_MAX cannot be given to the kernel. Such a directory is opened in hops, and its
entries are then named through /proc/self/fd, so that the callers need only ordinary path calls.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

PATH_SAFE_BYTES = 3840  # PATH_MAX is 4096, and a name of 255 bytes must still fit behind the prefix


@contextmanager
def reachable(root: bytes, relative: bytes) -> Iterator[bytes]:
    """Yield a prefix, slash included, to which any name in directory `root`/`relative` can be added."""
    path = root + b"/" + relative + b"/" if relative else root + b"/"
    if len(path) <= PATH_SAFE_BYTES:
        yield path
        return
    directory = _open_in_hops(root, relative)
    try:
        yield b"/proc/self/fd/%d/" % directory
    finally:
        os.close(directory)


def _open_in_hops(root: bytes, relative: bytes) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    directory = os.open(root, flags)
    rest = relative
    while rest:
        hop = rest
        if len(rest) > PATH_SAFE_BYTES:
            hop = rest[: rest.rindex(b"/", 0, PATH_SAFE_BYTES)]
        rest = rest[len(hop) + 1 :]
        try:
            below = os.open(hop, flags | os.O_NOFOLLOW, dir_fd=directory)
        finally:
            os.close(directory)
        directory = below
    return directory
