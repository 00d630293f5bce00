"""Configuration documents for tests."""

from typing import Any

# Spec cli-config B2: what the snapshotter really writes for a registry image.
REGISTRY_V1: dict[str, Any] = {
    "device": {
        "id": "/42",
        "backend": {
            "type": "registry",
            "config": {
                "readahead": False,
                "host": "ghcr.io",
                "repo": "dragonflyoss/image-service/nginx",
                "auth": "dXNlcjpwYXNz",
                "proxy": {"fallback": False},
                "timeout": 5,
                "connect_timeout": 5,
                "retry_limit": 2,
            },
        },
        "cache": {
            "type": "blobcache",
            "config": {
                "work_dir": "/var/lib/containerd/io.containerd.snapshotter.v1.nydus/cache",
                "disable_indexed_map": False,
            },
        },
    },
    "mode": "direct",
    "digest_validate": False,
    "enable_xattr": True,
    "amplify_io": 1048576,
    "fs_prefetch": {
        "enable": True,
        "prefetch_all": True,
        "threads_count": 8,
        "merging_size": 1048576,
    },
}


def v1(
    *, backend: dict[str, Any] | None = None, cache: dict[str, Any] | None = None, **top: Any
) -> dict[str, Any]:
    """A v1 document on a localfs backend and a file cache, with parts replaced and keys added."""
    return {
        "device": {
            "backend": backend or {"type": "localfs", "config": {"dir": "/blobs"}},
            "cache": cache or {"type": "blobcache", "config": {"work_dir": "/cache"}},
        },
        "mode": "direct",
        **top,
    }


def v2(**top: Any) -> dict[str, Any]:
    """A v2 document on a localfs backend and a file cache, with sections replaced or added."""
    return {
        "version": 2,
        "backend": {"type": "localfs", "localfs": {"dir": "/blobs"}},
        "cache": {"type": "filecache", "filecache": {"work_dir": "/cache"}},
        "rafs": {},
        **top,
    }
