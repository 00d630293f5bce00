"""One round of one contestant: its lives, cold, complete, partly cached, and what each of them shows."""

import shutil
import sys
import time
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

from benchmarks import devices, mounts, reads, rows, walks
from benchmarks.blob_cache import Victim
from benchmarks.contestants import Contestant
from benchmarks.process import Daemon, drop_caches
from benchmarks.rows import BASES, COMPLETE, EROFS, PARTLY, StateRows
from benchmarks.subject import Subject, Tree
from benchmarks.table import Table
from tests.support.slow_link import LinkProcess

SETTLE_S = 0.5  # what a daemon still loads once it is RUNNING counts as memory after start
WHOLE_TRIES = 3


@dataclass
class Measurement:
    """What all lives of all rounds share."""

    table: Table
    subject: Subject
    victim: Victim
    groups: AbstractSet[str]
    link: LinkProcess
    host: str  # the registry without the link
    mbit: float
    big: Path
    plans: dict[int, reads.Plan]  # by KiB
    device_plans: dict[int, devices.DevicePlan | None]  # the same, of the blob device
    xattrs: list[str]  # what getfattr says of the source

    def round_of(self, who: Contestant) -> None:
        """Let a daemon live through every state that the chosen rows need."""
        if "cold" in self.groups:
            self._cold(who)
        if self.groups & {"tar", "sequential", "random"}:
            self._complete(who)
        if self.groups & {"start", "find", "getfattr", "tar", "sequential", "random"}:
            self._partly_cached(who)
        if "random" in self.groups and who.column == EROFS:
            self._devices(who)

    def round_of_tree(self, column: str, tree: Tree) -> None:
        """Measure a file system that has no states: the same figure stands in the rows of both."""
        self._names(column, tree.path)
        if "tar" in self.groups:
            drop_caches()
            seconds = walks.tar(tree.path, self._tar_bytes())
            self.table.add(rows.TAR_COMPLETE, column, seconds)
            self.table.add(rows.TAR_PARTLY, column, seconds)
            self.table.add(rows.TAR_AGAIN, column, walks.tar(tree.path, self._tar_bytes()))
            walks.check_same(tree.path, self.subject.source)
        self._bytes(column, tree, PARTLY, COMPLETE)

    def _cold(self, who: Contestant) -> None:
        """An empty cache behind the link."""
        shutil.rmtree(who.cache.folder)
        who.cache.folder.mkdir()
        carried = self._carried()
        with who.live(self.link.address) as life:
            self._say_what_serves(who, life, "cold")
            time.sleep(SETTLE_S)
            drop_caches()
            self._add(who, rows.COLD_FIND, walks.find(life.mountpoint) * 1000)
            cpu = life.cpu_s()
            seconds = walks.tar(life.mountpoint, self._tar_bytes())
            self._add(who, rows.CPU, life.cpu_s() - cpu)
            self._add(who, rows.COLD_TAR, seconds)
            ideal = self.subject.stored_bytes * 8 / (self.mbit * 1e6)
            self._add(who, rows.COLD_IDEAL, seconds / ideal)
            self._add(who, rows.REQUESTS, life.requests())
            self._add(who, rows.FETCHED, (self._carried() - carried) / 2**20)
            self._add(who, rows.PSS_TAR, life.pss_mib())
            walks.check_same(life.mountpoint, self.subject.source)

    def _complete(self, who: Contestant) -> None:
        """Every chunk in the cache before the daemon starts."""
        self._make_whole(who)
        with who.live(self.link.address) as life:
            self._say_what_serves(who, life, "complete")
            if "tar" in self.groups:
                drop_caches()
                self._add(who, rows.TAR_COMPLETE, walks.tar(life.mountpoint, self._tar_bytes()))
                self._add(who, rows.TAR_AGAIN, walks.tar(life.mountpoint, self._tar_bytes()))
                walks.check_same(life.mountpoint, self.subject.source)
            self._bytes(who.column, Tree(life.mountpoint, who.cache.data), COMPLETE)
            if life.requests():
                self.table.note(f"{who.column}, complete: fetched though nothing was absent")

    def _partly_cached(self, who: Contestant) -> None:
        """All but one chunk, a file's that the timed walks leave out.

        Not through the link: who reads ahead over the chunk has it fetched, and the row is about what is there.
        """
        self._make_whole(who)
        who.cache.take_out(self.victim.extent)
        if "start" in self.groups:
            self._starts(who)
        with who.live(self.host) as life:
            self._say_what_serves(who, life, "partly cached")
            self._names(who.column, life.mountpoint)
            if "tar" in self.groups:
                drop_caches()
                seconds = walks.tar(life.mountpoint, self._tar_bytes(), self.victim.path)
                self._add(who, rows.TAR_PARTLY, seconds)
                if life.requests():
                    self.table.note(
                        f"{who.column}: `{rows.TAR_PARTLY.title}` fetched, by reading ahead"
                    )
                walks.check_same(life.mountpoint, self.subject.source, self.victim.path)
            self._bytes(who.column, Tree(life.mountpoint, who.cache.data), PARTLY)
            walks.check_same(life.mountpoint, self.subject.source)
            if not life.requests():
                self.table.note(f"**{who.column}: the absent chunk came from nowhere**")

    def _devices(self, who: Contestant) -> None:
        """What EROFS reads from, when one chunk is absent: O_DIRECT takes the whole way to the cache file."""
        self._make_whole(who)
        who.cache.take_out(self.victim.extent)
        with devices.shown(who.folder, who.bootstrap, who.settings(self.host)) as tree:
            for kib, jobs in rows.RANDOM_SHAPES:
                plan = self.device_plans[kib]
                if plan is None:
                    self.table.note("the device of a v5 image is not measured by itself")
                    return
                drop_caches()
                reads.prime(who.cache.data)
                speed, _ = reads.random_reads(
                    tree, self.subject.source, plan.device, jobs, plan.files
                )
                self._add(who, rows.DEVICE[kib, jobs], speed)
            if not devices.holds(tree, self.victim, self.subject.source):
                sys.exit("the device has other bytes of the absent chunk than the source")

    def _starts(self, who: Contestant) -> None:
        drop_caches()
        with who.live(self.host) as life:  # brings back what was dropped, for the next one
            self._add(who, rows.START_DROPPED, life.start_s * 1000)
        with who.live(self.host) as life:
            self._add(who, rows.START, life.start_s * 1000)
            time.sleep(SETTLE_S)
            self._add(who, rows.PSS_START, life.pss_mib())

    def _names(self, column: str, tree: Path) -> None:
        if "find" in self.groups:
            drop_caches()
            self.table.add(rows.FIND, column, walks.find(tree) * 1000)
            self.table.add(rows.FIND_AGAIN, column, walks.find(tree) * 1000)
        if "getfattr" in self.groups:
            drop_caches()
            seconds, found = walks.getfattr(tree)
            if found == self.xattrs:
                self.table.add(rows.GETFATTR, column, seconds * 1000)
            else:
                self.table.note(f"{column}: other extended attributes than the source, not timed")

    def _bytes(self, column: str, tree: Tree, *states: StateRows) -> None:
        source = self.subject.source
        if "sequential" in self.groups:
            drop_caches()
            speed = reads.sequential(tree.path, source, self.big)
            for state in states:
                self.table.add(state.sequential, column, speed)
        if "random" in self.groups:
            for kib, jobs in rows.RANDOM_SHAPES:
                drop_caches()
                reads.prime(tree.store)
                speed, direct = reads.random_reads(tree.path, source, self.plans[kib], jobs)
                for state in states:
                    found = state.random if direct else state.buffered
                    self.table.add(found[kib, jobs], column, speed)
                if column in BASES and PARTLY in states:
                    self.table.add(rows.DEVICE[kib, jobs], column, speed)

    def _make_whole(self, who: Contestant) -> None:
        """Read everything, without the link, until nothing is absent."""
        for _ in range(WHOLE_TRIES):
            if not who.cache.absent():
                return
            with who.live(self.host) as life:
                walks.tar(life.mountpoint, self._tar_bytes())
        if absent := who.cache.absent():
            self.table.note(f"**{who.column}: {absent} chunks absent after reading everything**")

    def _say_what_serves(self, who: Contestant, life: Daemon, state: str) -> None:
        mounted = mounts.file_system(life.mountpoint)
        behind = "a FUSE session" if life.holds_dev_fuse() else "nobody: the cache files themselves"
        self.table.note(f"{who.column}, {state}: file system {mounted}, behind it {behind}")

    def _tar_bytes(self) -> int:
        """What a tar holds at least, with or without the victim."""
        return self.subject.plain_bytes - self.victim.extent.chunk_size

    def _carried(self) -> int:
        return int(self.link.command("counts").split()[2])

    def _add(self, who: Contestant, row: rows.Row, value: float) -> None:
        self.table.add(row, who.column, value)
