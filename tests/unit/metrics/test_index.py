"""Which counters an id means (spec api §4)."""

from nydusd.kernel.stats import FsStats
from nydusd.metrics.index import MetricsIndex, MountCounters
from nydusd.storage.stats import BackendStats, CacheStats


def mount(
    mountpoint: str,
    config_id: str = "",
    backend: BackendStats | None = None,
    cache: CacheStats | None = None,
) -> MountCounters:
    return MountCounters(
        mountpoint,
        config_id,
        FsStats(mountpoint),
        backend or BackendStats("localfs"),
        None if cache is None else lambda: cache,
    )


def index_of(*mounts: MountCounters) -> MetricsIndex:
    index = MetricsIndex()
    for one in mounts:
        index.add(one)
    return index


def test_without_mounts_there_are_no_counters() -> None:
    index = MetricsIndex()
    assert (index.fs(None), index.backend(None), index.cache(None)) == (None, None, None)


def test_the_only_object_needs_no_id() -> None:
    cache = CacheStats("/cache")
    one = mount("/", "vec", cache=cache)
    index = index_of(one)
    assert index.fs(None) is one.fs
    assert index.backend(None) is one.backend
    assert index.cache(None) is cache


def test_one_of_several_needs_an_id_and_an_unknown_id_names_nothing() -> None:
    cache = CacheStats("/c")
    one, two = mount("/a", "x", cache=CacheStats("/c")), mount("/b", "y", cache=cache)
    index = index_of(one, two)
    assert (index.fs(None), index.backend(None), index.cache(None)) == (None, None, None)
    assert (index.fs("/b"), index.backend("/b"), index.cache("y")) == (
        two.fs,
        two.backend,
        cache,
    )
    assert (index.fs("/"), index.fs(""), index.cache("/b")) == (None, None, None)


def test_a_cache_is_known_by_its_configuration_not_by_its_mountpoint() -> None:
    cache = CacheStats("/c")
    index = index_of(mount("/42", "/device", cache=cache))
    assert index.cache("/device") is cache
    assert index.cache("/42") is None


def test_a_mount_without_cache_has_no_cache_counters() -> None:
    assert index_of(mount("/", "vec")).cache("vec") is None


def test_a_shared_backend_is_one_object_and_known_by_each_of_its_users() -> None:
    shared = BackendStats("registry")
    first, second = mount("/a", backend=shared), mount("/b", backend=shared)
    index = index_of(first, second)
    assert index.backend(None) is shared
    assert index.backend("/a") is index.backend("/b") is shared
    index.remove(first)
    assert index.backend("/a") is None
    assert index.backend("/b") is shared


def test_the_counters_of_a_cache_are_taken_when_asked_for() -> None:
    moments = iter(range(1, 9))
    index = MetricsIndex()
    index.add(
        MountCounters(
            "/",
            "vec",
            FsStats("/"),
            BackendStats("localfs"),
            lambda: CacheStats("/c", total=next(moments)),
        )
    )
    totals = [cache.total for cache in (index.cache("vec"), index.cache("vec")) if cache]
    assert totals == [1, 2]


def test_an_unmounted_file_system_is_forgotten_and_its_mountpoint_free_again() -> None:
    old, new = mount("/a"), mount("/a")
    index = index_of(old)
    index.remove(old)
    assert index.fs("/a") is None
    index.add(new)
    assert index.fs("/a") is index.fs(None) is new.fs


def test_the_newest_of_one_id_wins_and_the_older_comes_back() -> None:
    older, newer = CacheStats("/c"), CacheStats("/d")
    old, new = mount("/a", "x", cache=older), mount("/b", "x", cache=newer)
    index = index_of(old, new)
    assert index.cache("x") is index.cache(None) is newer
    index.remove(new)
    assert index.cache("x") is older


def test_removing_what_is_not_there_changes_nothing() -> None:
    one = mount("/a")
    index = index_of(one)
    index.remove(mount("/a"))
    assert index.fs("/a") is one.fs


def test_three_hundred_rounds_leave_nothing_behind() -> None:
    index = MetricsIndex()
    for round_number in range(300):
        one = mount(f"/{round_number}", "x", cache=CacheStats("/c"))
        index.add(one)
        index.remove(one)
    assert (index.fs(None), index.backend(None), index.cache(None)) == (None, None, None)
