"""Errors → status and text (spec api §2)."""

import pytest

from nydusd.api.controller import MountFault, MountRefusedError, NotReadyError, TransferError
from nydusd.api.errors import Area, NoCounterError, quoted, status_and_text
from nydusd.errors import (
    BackendError,
    ConfigError,
    ExistsError,
    FormatError,
    NotFoundError,
    NydusError,
    StateError,
    UnsupportedError,
)

NO_START = 'Configure(DaemonAbnormal(UnexpectedEvent("Start")))'
NO_TAKEOVER = 'Upgrade(DaemonAbnormal(UnexpectedEvent("Takeover")))'
EXISTS = 'Mount(MountFilesystem(Other("object or filesystem already exists")))'
ABSENT = 'Mount(MountFilesystem(Other("object or filesystem doesn\'t exist")))'
NO_BACKEND = 'FsBackendInfo(Metrics(Daemon(Other("object or filesystem doesn\'t exist"))))'
PATH_WALK = (
    'Mount(MountFilesystem(Other("VFS failed to handle request, PathWalk(Os { code: 22, '
    'kind: InvalidInput, message: \\"Invalid argument\\" })")))'
)
FS_TYPE = (
    "Mount(MountFilesystem(Other(\"invalid argument `only 'rafs' and 'passthrough_fs' "
    'are supported, but nope was specified`")))'
)


@pytest.mark.parametrize(
    ("area", "error", "status", "text"),
    [
        (Area.CONFIGURE, StateError("Start", "INIT"), 400, NO_START),
        (Area.UPGRADE, StateError("Takeover", "READY"), 400, NO_TAKEOVER),
        (Area.UPGRADE, NotReadyError(), 503, "Upgrade(DaemonAbnormal(NotReady))"),
        (Area.UPGRADE, TransferError("gone"), 500, 'Upgrade(DaemonAbnormal(UpgradeManager("gone")))'),
        (Area.CONFIGURE, ConfigError("loud"), 500, "Configure(ResponsePayloadType)"),
        (Area.FS_METRICS, NoCounterError(), 404, "GlobalMetrics(Metrics(Stats(NoCounter)))"),
        (Area.FILES_METRICS, NoCounterError(), 404, "FsFilesMetrics(Metrics(Stats(NoCounter)))"),
        (Area.PATTERN_METRICS, NoCounterError(), 404, "Pattern(Metrics(Stats(NoCounter)))"),
        (Area.BACKEND_METRICS, NoCounterError(), 404, "BackendMetrics(Metrics(Stats(NoCounter)))"),
        (Area.CACHE_METRICS, NoCounterError(), 404, "BlobcacheMetrics(Metrics(Stats(NoCounter)))"),
        (Area.MOUNT, ExistsError("/a"), 500, EXISTS),
        (Area.MOUNT, NotFoundError("/a"), 500, ABSENT),
        (Area.BACKEND, NotFoundError("/a"), 500, NO_BACKEND),
        (Area.MOUNT, UnsupportedError(), 501, "Mount(DaemonAbnormal(Unsupported))"),
        (Area.MOUNT, UnsupportedError("not yet"), 501, 'Mount(DaemonAbnormal(Unsupported("not yet")))'),
        (Area.DELETE_BLOB, UnsupportedError(), 501, "DeleteBlobObject(DaemonAbnormal(Unsupported))"),
        (Area.MOUNT, MountRefusedError(MountFault.MOUNTPOINT), 500, PATH_WALK),
        (Area.MOUNT, MountRefusedError(MountFault.FS_TYPE, "nope"), 500, FS_TYPE),
        (
            Area.MOUNT,
            MountRefusedError(MountFault.PREFETCH_LIST),
            500,
            'Mount(MountFilesystem(Other("invalid prefetch file list")))',
        ),
        (Area.MOUNT, BackendError("slow"), 500, 'Mount(MountFilesystem(Other("slow")))'),
        (Area.EVENTS, NydusError("x"), 500, 'Events(DaemonAbnormal(Other("x")))'),
    ],
)  # fmt: skip
def test_status_and_text_of(area: Area, error: NydusError, status: int, text: str) -> None:
    assert status_and_text(area, error) == (status, text)


def test_the_nearest_class_decides() -> None:
    error = FormatError("size", 7, "must be even")
    assert status_and_text(Area.MOUNT, error) == (
        500,
        'Mount(MountFilesystem(Other("size is 7, must be even")))',
    )


def test_details_of_a_mount_fault_may_hold_braces() -> None:
    assert "{a} {0}" in str(MountRefusedError(MountFault.CONFIG, "{a} {0}"))


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        ("it's", '"it\'s"'),
        ('a"b\\c', '"a\\"b\\\\c"'),
        ("\n\r\t\0", '"\\n\\r\\t\\0"'),
        ("\x07", '"\\u{7}"'),
        ("é", '"é"'),
    ],
)
def test_quoted_spells_text_as_a_debug_form(text: str, spelled: str) -> None:
    assert quoted(text) == spelled
