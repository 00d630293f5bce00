"""What can be said of an EROFS mount without one; the mount itself: tests/integration/test_erofs_frontend.py."""

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio

from nydusd.kernel import erofs
from nydusd.kernel.erofs import ErofsMount
from nydusd.kernel.mount import MountError, MountIdentity

NO_DEVICE = 0  # of no mount: major and minor 0


@pytest.mark.parametrize(
    "release", ["6.11.0", "5.10.0-28-amd64", "6.2.0-39-generic", "4.19", "nonsense"]
)
def test_older_kernels_are_not_even_asked(monkeypatch: pytest.MonkeyPatch, release: str) -> None:
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(release=release))
    assert erofs.why_not() == f"Linux {release} is older than 6.12"


@pytest.mark.parametrize("release", ["6.12.0", "6.18.44-fc-v669", "6.12+", "7.0.0-rc1", "10.1"])
@pytest.mark.parametrize(
    ("number", "words"),
    [
        (None, None),
        (errno.EPERM, "no privilege to mount"),
        (errno.ENODEV, "the kernel has no EROFS: No such device"),
        (errno.ENOSYS, "the kernel has no EROFS: Function not implemented"),
    ],
)
def test_newer_kernels_have_the_last_word(
    monkeypatch: pytest.MonkeyPatch, release: str, number: int | None, words: str | None
) -> None:
    class Context:
        def __init__(self, kind: str) -> None:
            assert kind == "erofs"
            if number is not None:
                raise OSError(number, os.strerror(number))

        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(release=release))
    monkeypatch.setattr(erofs, "FsContext", Context)
    assert erofs.why_not() == words


@pytest.mark.parametrize(("metadata", "device"), [("/" + "m" * 255, "/d"), ("/m", "/" + "ü" * 128)])
async def test_a_path_that_the_kernel_would_not_take_is_named(metadata: str, device: str) -> None:
    with pytest.raises(MountError, match="path of more than 255 bytes"):
        await ErofsMount.mount(Path(metadata), [device], Path("/nowhere"))


@pytest.mark.parametrize("superblock", [None, "erofs-gone"])
async def test_a_mount_that_is_gone_is_not_waited_for(superblock: str | None) -> None:
    mounted = ErofsMount(Path("/nowhere"), MountIdentity(NO_DEVICE, 1, True), superblock)
    assert not mounted.is_listed()
    assert not mounted.unmount()
    with trio.fail_after(5):
        await mounted.wait_gone()


async def test_the_root_file_system_is_waited_for() -> None:
    device = os.stat("/").st_dev
    identity = MountIdentity(os.major(device) << 20 | os.minor(device), 1, True)
    mounted = ErofsMount(Path("/"), identity, None)
    if not mounted.is_listed():
        pytest.skip("the root is on a subvolume, whose number is not its mount's")
    with trio.move_on_after(0.05) as scope:
        await mounted.wait_gone()
    assert scope.cancelled_caught
    assert not mounted.unmount()  # it is not the mount that was meant
