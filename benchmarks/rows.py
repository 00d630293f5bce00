"""What is measured: the rows of the table, in its order, and what each is to reach."""

from dataclasses import dataclass
from typing import Literal

EROFS, FUSE, PEER, EROFSFUSE, EXT4 = "erofs", "fuse", "peer", "erofsfuse", "ext4"
BASES = (PEER, EXT4)  # columns that ratios are given against


@dataclass(frozen=True, slots=True)
class Goal:
    """A limit of a value, or of its ratio to another column."""

    limit: float
    against: Literal["peer", "ext4"] | None = None
    frontends: tuple[str, ...] = (EROFS, FUSE)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. `group` is what `--rows` selects by."""

    group: str
    title: str
    goals: tuple[Goal, ...] = ()
    more_is_better: bool = False


def _erofs(limit: float, against: Literal["peer", "ext4"]) -> Goal:
    return Goal(limit, against, (EROFS,))


def _speed(group: str, title: str, limit: float) -> Row:
    return Row(group, title, (Goal(limit, "peer"),), more_is_better=True)


START_DROPPED = Row("start", "exec to RUNNING, page cache dropped, ms")
START = Row("start", "exec to RUNNING, ms", (Goal(180),))
PSS_START = Row("start", "PSS after start, MiB", (Goal(32),))

COLD_FIND = Row("cold", "cold find, ms", (_erofs(0.35, "peer"), Goal(2, "peer", (FUSE,))))
COLD_TAR = Row("cold", "cold tar, s")
COLD_IDEAL = Row("cold", "cold tar / what its bytes need on the link")
REQUESTS = Row("cold", "requests for all")
FETCHED = Row("cold", "MiB over the link for all")
CPU = Row("cold", "CPU of the daemon for the cold tar, s", (Goal(1.2),))
PSS_TAR = Row("cold", "PSS after the cold tar, MiB", (Goal(42),))

FIND = Row("find", "find, dropped, ms")
FIND_AGAIN = Row("find", "find again, ms")
GETFATTR = Row("getfattr", "getfattr -R usr/share, dropped, ms", (_erofs(0.45, "peer"),))
TAR_PARTLY = Row("tar", "tar, dropped, partly cached, s", (_erofs(0.7, "peer"),))
TAR_COMPLETE = Row("tar", "tar, dropped, complete, s", (_erofs(0.35, "peer"), _erofs(0.5, "ext4")))
TAR_AGAIN = Row("tar", "tar again, complete, s")

RANDOM_SHAPES = ((4, 1), (4, 4), (128, 1), (128, 4))  # KiB, jobs


def _random(how: str, state: str, *frontends: str) -> dict[tuple[int, int], Row]:
    """Return the rows of all shapes; frontends: whose goal they are."""
    goals = (Goal(1.0, "peer", frontends),) if frontends else ()
    return {
        (kib, jobs): Row(
            "random",
            f"random {kib} KiB {how}, {jobs} job{'s'[: jobs > 1]}, {state}, per s",
            goals,
            more_is_better=True,
        )
        for kib, jobs in RANDOM_SHAPES
    }


class StateRows:
    """Rows that an image has twice: with every chunk in the cache, and with some absent."""

    def __init__(self, state: str) -> None:
        self.sequential = _speed("sequential", f"sequential read, dropped, {state}, MiB/s", 1.3)
        self.random = _random("O_DIRECT", state, FUSE)
        # Who refuses O_DIRECT. Through two page caches is another thing, so it is no goal.
        self.buffered = _random("buffered", state)


PARTLY, COMPLETE = StateRows("partly cached"), StateRows("complete")
# What EROFS reads from. A complete image has no such device: EROFS reads the cache files. Bases show their tree.
DEVICE = _random("O_DIRECT of the blob device", "partly cached", EROFS)

ROWS = (
    *(START_DROPPED, START, PSS_START),
    *(COLD_FIND, COLD_TAR, COLD_IDEAL, REQUESTS, FETCHED, CPU, PSS_TAR),
    *(FIND, FIND_AGAIN, GETFATTR, TAR_PARTLY, TAR_COMPLETE, TAR_AGAIN),
    *(PARTLY.sequential, *DEVICE.values(), *PARTLY.random.values(), *PARTLY.buffered.values()),
    *(COMPLETE.sequential, *COMPLETE.random.values(), *COMPLETE.buffered.values()),
)
GROUPS = tuple(dict.fromkeys(row.group for row in ROWS))
