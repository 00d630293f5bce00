"""The mount table, with images in memory."""

from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from nydusd.daemon.mounts import MountTable, check_prefetch_files, normalized
from nydusd.errors import BackendError, ConfigError, ExistsError, FormatError, NotFoundError
from nydusd.kernel.vfs import Stale, Vfs
from nydusd.metrics.index import MetricsIndex
from tests.support.daemons import MemoryPool, config

BOOT = Path("/image.boot")


class Table(MountTable):
    """A mount table with its surroundings at hand."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.pool = MemoryPool(str(BOOT), "/other.boot")
        self.image = self.pool.images[str(BOOT)]
        self.vfs = Vfs()
        self.told: list[Stale] = []
        self.metrics = MetricsIndex()
        super().__init__(self.pool, self.vfs, self.metrics, nursery, self.note)

    async def note(self, stale: Stale) -> None:
        await trio.lowlevel.checkpoint()
        self.told.append(stale)

    def nothing_left(self) -> bool:
        return (
            not list(self)
            and not self.vfs.mountpoints()
            and self.metrics.fs(None) is self.metrics.cache(None) is None
        )


@pytest.fixture
def table(nursery: trio.Nursery) -> Table:
    return Table(nursery)


async def test_a_mount_is_visible_counted_and_the_kernel_told(table: Table) -> None:
    await table.mount("/a", BOOT, config("id"))
    assert list(table.vfs.mountpoints()) == ["/a"]
    assert [mount.mountpoint for mount in table] == ["/a"]
    assert table.metrics.fs("/a") is table.get("/a").tree.stats
    assert table.metrics.backend("/a") is table.image.backend_stats
    cache = table.metrics.cache("id")
    assert cache is not None
    assert cache.underlying_files == ["ab.blob.data"]
    assert len(table.told) == 1


async def test_unmounting_gives_everything_back(table: Table) -> None:
    await table.mount("/a", BOOT, config())
    await table.unmount("/a")
    assert table.nothing_left()
    assert table.image.closed == 1
    assert len(table.told) == 2


async def test_three_hundred_rounds_on_one_mountpoint(table: Table) -> None:
    for _ in range(300):
        await table.mount("/a/b/c", BOOT, config())
        await table.unmount("/a/b/c")
    assert table.nothing_left()
    assert table.image.closed == 300


async def test_an_occupied_mountpoint_is_refused_before_anything_is_opened(table: Table) -> None:
    await table.mount("/a", BOOT, config())
    with pytest.raises(ExistsError):
        await table.mount("/a/", BOOT, config())
    assert table.pool.opened == [str(BOOT)]
    assert table.image.closed == 0


async def test_what_is_not_mounted_cannot_be_unmounted(table: Table) -> None:
    await table.mount("/a", BOOT, config())
    for place in ("/", "/b", "/a/b"):
        with pytest.raises(NotFoundError):
            await table.unmount(place)
    assert [mount.mountpoint for mount in table] == ["/a"]


@pytest.mark.parametrize(
    "failure", [BackendError("no"), FormatError("x", 1, "y"), ConfigError("z")]
)
async def test_a_failing_mount_attaches_nothing_and_disturbs_no_other(
    table: Table, failure: BackendError | FormatError | ConfigError
) -> None:
    await table.mount("/good", BOOT, config())
    table.pool.failures.append(failure)
    with pytest.raises(type(failure)):
        await table.mount("/bad", Path("/other.boot"), config())
    assert list(table.vfs.mountpoints()) == ["/good"]
    assert table.image.closed == 0
    await table.mount("/bad", Path("/other.boot"), config())
    assert list(table.vfs.mountpoints()) == ["/good", "/bad"]


async def test_an_image_whose_root_is_broken_is_given_back(table: Table) -> None:
    table.image.bootstrap.broken.add(table.image.bootstrap.root_ino)
    with pytest.raises(FormatError):
        await table.mount("/a", BOOT, config())
    assert table.image.closed == 1
    assert table.nothing_left()


async def test_of_two_mounts_of_one_place_at_a_time_the_second_is_refused(
    table: Table, nursery: trio.Nursery
) -> None:
    table.pool.gate = trio.Event()
    nursery.start_soon(table.mount, "/a", BOOT, config())
    await trio.testing.wait_all_tasks_blocked()
    with pytest.raises(ExistsError):
        await table.mount("/a", BOOT, config())
    with pytest.raises(NotFoundError):
        await table.unmount("/a")
    table.pool.gate.set()
    await trio.testing.wait_all_tasks_blocked()
    assert list(table.vfs.mountpoints()) == ["/a"]


async def test_a_cancelled_mount_leaves_the_place_free(table: Table) -> None:
    table.pool.gate = trio.Event()
    with trio.move_on_after(0):
        await table.mount("/a", BOOT, config())
    assert table.nothing_left()
    table.pool.gate.set()
    await table.mount("/a", BOOT, config())


async def test_an_unmount_that_has_begun_goes_through(table: Table, nursery: trio.Nursery) -> None:
    await table.mount("/a", BOOT, config())
    with trio.CancelScope() as scope:
        scope.cancel()
        await table.unmount("/a")
    assert table.nothing_left()
    assert table.image.closed == 1


async def test_an_image_that_does_not_come_to_its_end_delays_an_unmount_only_so_long(
    table: Table, autojump_clock: trio.testing.MockClock
) -> None:
    async def never() -> None:
        await trio.sleep_forever()

    table.image.aclose = never  # type: ignore[method-assign]
    await table.mount("/a", BOOT, config())
    await table.unmount("/a")
    assert autojump_clock.current_time() <= 10
    assert table.nothing_left()


async def test_closing_ends_all_mounts_without_telling_the_kernel(table: Table) -> None:
    await table.mount("/a", BOOT, config("a"))
    await table.mount("/b", Path("/other.boot"), config("b"))
    told = len(table.told)
    await table.close()
    assert [image.closed for image in table.pool.images.values()] == [1, 1]
    assert len(table.told) == told


async def test_without_a_cache_there_are_no_cache_counters(table: Table) -> None:
    table.image.cache_stats = None
    await table.mount("/a", BOOT, config("id"))
    assert table.metrics.cache("id") is None
    assert table.metrics.fs("/a") is not None


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/", "/"),
        ("//a///b/", "/a/b"),
        ("/a/./b/../c", "/a/c"),
        ("/..", "/"),
        ("/a/../../b", "/b"),
        ("/.a", "/.a"),
    ],
)
def test_mountpoints_are_resolved(path: str, expected: str) -> None:
    assert normalized(path) == expected


@pytest.mark.parametrize("path", ["", "a", "./a", "/a\0"])
def test_what_is_no_absolute_path_is_no_mountpoint(path: str) -> None:
    with pytest.raises(ConfigError):
        normalized(path)


@given(st.text(alphabet="/.ab", max_size=12).map(lambda text: f"/{text}"))
def test_a_resolved_mountpoint_stays_as_it_is(path: str) -> None:
    once = normalized(path)
    assert normalized(once) == once
    assert not {"..", "."} & set(once.split("/"))


def test_prefetch_files_must_be_absolute() -> None:
    check_prefetch_files(("/bin", "/"))
    with pytest.raises(ConfigError, match="lib"):
        check_prefetch_files(("/bin", "lib"))
