"""The relay through its typed edge. A pair of sockets stands in for /dev/fuse: one end plays the kernel."""

import errno
import gc
import mmap
import os
import re
import select
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nydusd import native
from nydusd.kernel.stats import READ_LATENCY_BOUNDS_US
from nydusd.native_relay import (
    ENDED,
    REPLY_BYTES_MAX,
    REQUEST_BYTES_MAX,
    SEGMENT,
    THREADS_MAX,
    TOUCHED,
    Kind,
    NativeSource,
    ReadCounts,
    Relay,
)
from nydusd.storage.stats import SIZE_BOUNDS_BYTES, size_bucket

BASE = 4096  # of a chunk map's bits
CHUNK_BYTES = 8192
CHUNKS = 160
NODE = 5
SOON_S = 10
READ, FORGET, LOOKUP, INTERRUPT = 15, 2, 1, 36
SO_SNDBUFFORCE = 32

C_SOURCE = Path(__file__).parents[3] / "native"


def make_request(opcode: int, nodeid: int, payload: bytes = b"", unique: int = 7) -> bytes:
    return struct.pack("=IIQQ16x", 40 + len(payload), opcode, unique, nodeid) + payload


def make_read(offset: int, size: int, nodeid: int = NODE, unique: int = 7) -> bytes:
    return make_request(READ, nodeid, struct.pack("=8xQI20x", offset, size), unique)


class Kernel:
    """The other end of a device."""

    def __init__(self) -> None:
        self._socket, self.device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.device.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 4 * REPLY_BYTES_MAX)
        self._socket.settimeout(SOON_S)

    def send(self, request: bytes) -> None:
        self._socket.send(request)

    def receive(self, unique: int = 7) -> bytes:
        reply = self._socket.recv(REPLY_BYTES_MAX + 4096)
        assert struct.unpack_from("=IiQ", reply) == (len(reply), 0, unique)
        return reply[16:]

    def read(self, offset: int, size: int, nodeid: int = NODE) -> bytes:
        self.send(make_read(offset, size, nodeid))
        return self.receive()

    def hang_up(self) -> None:
        self._socket.close()

    def close(self) -> None:
        self._socket.close()
        self.device.close()


class Blob:
    """A cache file with its map; no chunk is ready."""

    def __init__(self, path: Path, seed: int) -> None:
        pattern = bytes((seed + i * 7) % 251 for i in range(251 * 97))
        self.plain = (pattern * (CHUNKS * CHUNK_BYTES // len(pattern) + 1))[: CHUNKS * CHUNK_BYTES]
        path.write_bytes(self.plain)
        self.fd = os.open(path, os.O_RDONLY)
        self.chunk_map = mmap.mmap(-1, BASE + CHUNKS // 8)
        self.watch = bytearray(CHUNKS // 8)
        self.hits = bytearray(8)
        self.source = NativeSource(self.fd, self.chunk_map, BASE, CHUNKS, self.watch, self.hits)
        self.blocks = struct.pack(f"={CHUNKS}I", *(i * CHUNK_BYTES // 4096 for i in range(CHUNKS)))

    def mark(self, *chunks: int) -> None:
        native.mark_ready(self.chunk_map, BASE, CHUNKS, chunks or range(CHUNKS))

    @property
    def hit_count(self) -> int:
        return int.from_bytes(self.hits, "little")

    def close(self) -> None:
        os.close(self.fd)
        self.chunk_map.close()  # raises BufferError if somebody still holds it


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    kernel = Kernel()
    yield kernel
    kernel.close()


@pytest.fixture
def blob(tmp_path: Path) -> Iterator[Blob]:
    blob = Blob(tmp_path / "blob", 1)
    yield blob
    blob.close()


@pytest.fixture
def relay(blob: Blob) -> Iterator[Relay]:
    # After the blob, so that it is closed before: what the relay held must be free by then.
    relay = Relay()
    yield relay
    relay.stop(SOON_S)
    relay.close()


@pytest.fixture
def counts() -> ReadCounts:
    return ReadCounts()


@pytest.fixture
def serve(relay: Relay, kernel: Kernel, blob: Blob, counts: ReadCounts) -> Callable[[], int]:
    """Register `blob` as the flat file NODE, start the relay, return the number of the source."""

    def start() -> int:
        source = relay.add_source(blob.source)
        relay.add_flat(NODE, len(blob.plain), source, blob.blocks, counts)
        relay.start([kernel.device.fileno()], 2, 4)
        return source

    return start


def is_awake(relay: Relay, timeout_s: float = 0) -> bool:
    return bool(select.select([relay.wake_fd], [], [], timeout_s)[0])


def test_ready_ranges_are_answered_without_python(
    relay: Relay, kernel: Kernel, blob: Blob, serve: Callable[[], int], counts: ReadCounts
) -> None:
    serve()
    blob.mark(3, 4)
    start = 3 * CHUNK_BYTES
    assert (
        kernel.read(start + 5, 2 * CHUNK_BYTES - 5)
        == blob.plain[start + 5 :][: 2 * CHUNK_BYTES - 5]
    )
    assert kernel.read(start, 1) == blob.plain[start : start + 1]
    assert (counts.reads, counts.bytes, blob.hit_count) == (2, 2 * CHUNK_BYTES - 4, 2)
    assert sum(counts.by_latency) == 2
    assert counts.by_latency[0] == 2 or counts.latency_us > READ_LATENCY_BOUNDS_US[0]
    assert not is_awake(relay)
    assert relay.take() == []


def test_a_range_that_is_not_ready_comes_to_python_and_can_be_answered_later(
    relay: Relay, kernel: Kernel, blob: Blob, serve: Callable[[], int], counts: ReadCounts
) -> None:
    serve()
    blob.mark(0)
    request = make_read(CHUNK_BYTES - 1, 2, unique=99)
    kernel.send(request)
    assert is_awake(relay, SOON_S)
    assert relay.take() == [(Kind.REQUEST, 0, request)]
    assert not is_awake(relay)
    device = kernel.device.fileno()
    assert not relay.answer(device, request)
    assert counts.reads == 0
    blob.mark(1)
    assert relay.answer(device, memoryview(request))
    assert kernel.receive(99) == blob.plain[CHUNK_BYTES - 1 : CHUNK_BYTES + 1]
    assert counts.reads == 1


def test_what_is_no_read_of_a_known_file_is_not_answered(
    relay: Relay, kernel: Kernel, blob: Blob, serve: Callable[[], int]
) -> None:
    serve()
    blob.mark()
    device = kernel.device.fileno()
    assert not relay.answer(device, make_request(LOOKUP, NODE, b"name\0"))
    assert not relay.answer(device, make_read(0, 1, NODE + 1))
    assert not relay.answer(device, make_read(0, 1)[:-1])
    assert not relay.answer(device, b"")
    with pytest.raises(OSError, match="Bad file") as caught:
        relay.answer(-1, make_read(0, 1))
    assert caught.value.errno == errno.EBADF


def test_messages_keep_the_order_of_requests(
    relay: Relay, kernel: Kernel, blob: Blob, serve: Callable[[], int]
) -> None:
    sent = [make_request(LOOKUP, 1, b"x" * (i % 90) + b"\0", i) for i in range(500)]
    sent[250] = make_request(INTERRUPT, 0, struct.pack("=Q", 249), 250)
    source = relay.add_source(blob.source)
    assert source == 0
    relay.start([kernel.device.fileno()], 1, 1)
    received: list[bytes] = []
    for number, request in enumerate(sent):
        kernel.send(request)
        if number % 100 == 99:
            while len(received) <= number:
                assert is_awake(relay, SOON_S)
                messages = relay.take()
                assert {message.kind for message in messages} == {Kind.REQUEST}
                received += [message.body for message in messages]
    assert received == sent
    assert not is_awake(relay)


def test_forgets_and_headless_requests_reach_nobody(
    relay: Relay, kernel: Kernel, serve: Callable[[], int]
) -> None:
    serve()
    for request in (make_request(FORGET, NODE, bytes(8)), b"short", bytes(39)):
        kernel.send(request)
    last = make_request(LOOKUP, 1, b"\0")
    kernel.send(last)
    kernel.send(last)
    bodies: list[bytes] = []
    while len(bodies) < 2:
        assert is_awake(relay, SOON_S)
        bodies += [message.body for message in relay.take()]
    relay.stop(SOON_S)  # so that no thread is still at a request
    assert bodies == [last, last]
    assert relay.take() == []
    assert relay.dropped == 2


def test_a_request_as_long_as_can_be_comes_whole(
    relay: Relay, kernel: Kernel, serve: Callable[[], int]
) -> None:
    serve()
    longest = make_request(LOOKUP, 1, os.urandom(REQUEST_BYTES_MAX - 40))
    kernel.send(longest)
    assert is_awake(relay, SOON_S)
    assert [message.body for message in relay.take()] == [longest]


def test_replies_are_counted_by_size_as_storage_counts_them(
    kernel: Kernel, blob: Blob, serve: Callable[[], int], counts: ReadCounts
) -> None:
    serve()
    blob.mark()
    expected = [0] * 8
    for size in {bound + change for bound in (0, *SIZE_BOUNDS_BYTES) for change in (-1, 0, 1)}:
        if not 0 <= size <= REPLY_BYTES_MAX:
            continue
        assert len(kernel.read(0, size)) == size
        expected[size_bucket(size)] += 1
    assert list(counts.by_size) == expected
    assert counts.reads == sum(expected)


def test_a_read_above_the_largest_reply_is_pythons(
    relay: Relay, kernel: Kernel, blob: Blob, serve: Callable[[], int]
) -> None:
    serve()
    blob.mark()
    kernel.send(make_read(0, REPLY_BYTES_MAX + 1))
    assert is_awake(relay, SOON_S)


def test_constants_are_those_of_the_c_code() -> None:
    header = (C_SOURCE / "relay.h").read_text()
    assert f"ND_RELAY_THREADS_MAX {THREADS_MAX}\n" in header
    assert f"ND_REQUEST_BYTES_MAX {REQUEST_BYTES_MAX}\n" in header
    assert "ND_REPLY_BYTES_MAX (1u << 20)" in header
    assert REPLY_BYTES_MAX == 1 << 20
    tables = re.findall(r"bounds\[\] = \{([^}]*)\}", (C_SOURCE / "relay_read.c").read_text())
    latency = tuple(int(bound) for bound in tables[1].split(","))
    assert latency == READ_LATENCY_BOUNDS_US


@pytest.mark.parametrize("zero_gaps", [True, False])
def test_segments_of_several_sources_make_one_file(
    relay: Relay, kernel: Kernel, blob: Blob, tmp_path: Path, zero_gaps: bool, counts: ReadCounts
) -> None:
    other = Blob(tmp_path / "other", 100)
    try:
        first, second = relay.add_source(blob.source), relay.add_source(other.source)
        segments = b"".join(
            SEGMENT.pack(*segment, 0)
            for segment in [
                (0, 5 * CHUNK_BYTES + 10, 100, 5, second),
                (100, 7, 50, 0, first),
                (150, 57, 50, 1, first),  # goes on where the one before ends
                (1000, 3 * CHUNK_BYTES, 24, 3, second),
            ]
        )
        relay.add_file(NODE, 1100, segments, zero_gaps, counts)
        blob.mark(0, 1)
        other.mark(3, 5)
        relay.start([kernel.device.fileno()], 1, 1)
        at = 5 * CHUNK_BYTES + 10
        packed = other.plain[at : at + 100] + blob.plain[7:107]
        assert kernel.read(0, 200) == packed
        assert kernel.read(99, 52) == packed[99:151]
        assert (blob.hit_count, other.hit_count) == (2, 2)
        if zero_gaps:
            last = other.plain[3 * CHUNK_BYTES :][:24]
            assert kernel.read(0, 4096) == packed + bytes(800) + last + bytes(76)
            assert (blob.hit_count, other.hit_count) == (3, 4)
        else:
            kernel.send(make_read(199, 2))
            assert is_awake(relay, SOON_S)
        relay.drop_file(NODE)
        relay.drop_source(second)
    finally:
        other.close()


def test_a_watched_chunk_is_told_once_until_it_is_watched_again(
    relay: Relay, kernel: Kernel, blob: Blob, serve: Callable[[], int]
) -> None:
    source = serve()
    blob.mark()
    for _ in range(2):
        native.mark_ready(blob.watch, 0, CHUNKS, [2])
        for _ in range(2):
            assert kernel.read(2 * CHUNK_BYTES, 10) == blob.plain[2 * CHUNK_BYTES :][:10]
        assert is_awake(relay, SOON_S)
        assert [(kind, TOUCHED.unpack(body)) for kind, _, body in relay.take()] == [
            (Kind.TOUCHED, (source, 2))
        ]
        assert not any(blob.watch)
    relay.stop(SOON_S)
    assert relay.take() == []


def test_buffers_live_as_long_as_they_are_registered(
    relay: Relay, kernel: Kernel, tmp_path: Path
) -> None:
    blob = Blob(tmp_path / "other", 3)
    blob.mark()
    plain, fd = blob.plain, blob.fd
    # The relay's references are the only ones from here on.
    source = relay.add_source(
        NativeSource(fd, bytearray(blob.chunk_map[:]), BASE, CHUNKS, None, bytearray(8))
    )
    relay.add_flat(NODE, len(plain), source, bytes(bytearray(blob.blocks)), ReadCounts())
    segments = bytes(bytearray(SEGMENT.pack(0, 0, 4096, 0, source, 0)))
    relay.add_file(NODE + 1, 4096, segments, False, ReadCounts())
    del segments
    gc.collect()
    rubbish = [bytearray(b"\xff" * n) for n in range(8, 4000, 8)]
    relay.start([kernel.device.fileno()], 1, 1)
    assert kernel.read(10, 20000) == plain[10:20010]
    assert kernel.read(10, 2000, NODE + 1) == plain[10:2010]
    assert len(rubbish)
    relay.stop(SOON_S)
    blob.close()


def test_dropping_lets_go_of_buffers_and_makes_reads_pythons(
    relay: Relay, kernel: Kernel, blob: Blob, serve: Callable[[], int]
) -> None:
    source = serve()
    blob.mark()
    assert kernel.read(0, 5) == blob.plain[:5]
    with pytest.raises(BufferError):
        blob.watch.append(0)
    with pytest.raises(BufferError):
        blob.chunk_map.close()
    relay.drop_source(source)
    blob.watch.append(0)
    blob.hits.append(0)
    blob.chunk_map.close()
    kernel.send(make_read(0, 5))
    assert is_awake(relay, SOON_S)
    relay.drop_file(NODE)
    with pytest.raises(FileNotFoundError):
        relay.drop_file(NODE)
    with pytest.raises(FileNotFoundError):
        relay.drop_source(source)


def test_numbers_that_do_not_fit_are_refused_and_leave_nothing_behind(
    relay: Relay, blob: Blob, counts: ReadCounts
) -> None:
    good = blob.source
    for bad in (
        good._replace(base=BASE + 1),
        good._replace(base=-1),
        good._replace(chunk_count=CHUNKS + 1),
        good._replace(watch=bytearray(CHUNKS // 8 - 1)),
        good._replace(hits=bytearray(7)),
        good._replace(fd=-1),
    ):
        with pytest.raises(ValueError, match=r"bytes|fit"):
            relay.add_source(bad)
    source = relay.add_source(good)
    with pytest.raises(ValueError, match="fit"):
        relay.add_flat(NODE, 1, source + 1, blob.blocks, counts)
    with pytest.raises(ValueError, match="fit"):
        relay.add_flat(NODE, 1, source, blob.blocks[4:] + blob.blocks[:4], counts)
    with pytest.raises(ValueError, match="whole segments"):
        relay.add_file(NODE, 1, bytes(31), True, counts)
    with pytest.raises(ValueError, match="fit"):
        relay.add_file(NODE, 1, bytes(32), True, counts)  # a segment of 0 bytes
    with pytest.raises(OverflowError):
        relay.add_file(1 << 64, 1, b"", True, counts)
    relay.add_file(NODE, 1, b"", True, counts)
    blocks = bytearray(blob.blocks)
    with pytest.raises(FileExistsError):
        relay.add_flat(NODE, 1, source, blocks, counts)
    blocks.append(0)  # as nobody holds it
    relay.drop_source(source)


def test_a_stopped_relay_leaves_requests_in_the_kernel(
    relay: Relay, kernel: Kernel, serve: Callable[[], int]
) -> None:
    serve()
    first, second = make_request(LOOKUP, 1, b"1\0"), make_request(LOOKUP, 1, b"2\0")
    kernel.send(first)
    assert is_awake(relay, SOON_S)
    relay.stop(SOON_S)
    kernel.send(second)
    assert [message.body for message in relay.take()] == [first]
    assert select.select([kernel.device], [], [], 0)[0]
    relay.start([kernel.device.fileno()], 1, 1)
    assert is_awake(relay, SOON_S)
    assert [message.body for message in relay.take()] == [second]


def test_the_end_of_a_device_is_told_once(
    relay: Relay, kernel: Kernel, serve: Callable[[], int]
) -> None:
    serve()
    kernel.hang_up()
    assert is_awake(relay, SOON_S)
    (message,) = relay.take()
    assert message.kind is Kind.ENDED
    assert ENDED.unpack(message.body) == (errno.ECONNABORTED,)
    relay.stop(SOON_S)
    assert relay.take() == []


def test_messages_and_replies_stay_with_their_device(
    relay: Relay, kernel: Kernel, blob: Blob, counts: ReadCounts
) -> None:
    other = Kernel()
    try:
        relay.add_flat(NODE, len(blob.plain), relay.add_source(blob.source), blob.blocks, counts)
        blob.mark()
        relay.start([kernel.device.fileno(), other.device.fileno()], 2, 2)
        assert other.read(0, 3) == blob.plain[:3]
        other.send(make_request(LOOKUP, 1))
        assert is_awake(relay, SOON_S)
        assert [message.device for message in relay.take()] == [1]
        relay.stop(SOON_S)
    finally:
        other.close()


def test_a_relay_that_runs_is_not_closed_nor_started_again(
    relay: Relay, kernel: Kernel, blob: Blob, serve: Callable[[], int]
) -> None:
    serve()
    blob.mark()
    with pytest.raises(OSError, match="busy") as caught:
        relay.start([kernel.device.fileno()], 1, 1)
    assert caught.value.errno == errno.EBUSY
    with pytest.raises(OSError, match="not been stopped"):
        relay.close()
    assert kernel.read(0, 3) == blob.plain[:3]
    relay.stop(SOON_S)
    relay.stop(SOON_S)
    relay.close()
    relay.close()
    relay.stop(SOON_S)
    with pytest.raises(ValueError, match="closed"):
        relay.take()


def test_a_start_that_fails_leaves_the_relay_stopped(relay: Relay, kernel: Kernel) -> None:
    device = kernel.device.fileno()
    for devices, threads, threads_max in (
        ([], 1, 1),
        ([device], 0, 1),
        ([device], 2, 1),
        ([-1], 1, 1),
    ):
        with pytest.raises(OSError, match=r"Invalid|Bad file"):
            relay.start(devices, threads, threads_max)
    relay.start([device], 1, 1)
    relay.stop(SOON_S)
    relay.close()


def test_a_running_relay_that_nobody_names_goes_on(
    kernel: Kernel, blob: Blob, counts: ReadCounts
) -> None:
    blob.mark()
    relay = Relay()
    relay.add_flat(NODE, len(blob.plain), relay.add_source(blob.source), blob.blocks, counts)
    relay.start([kernel.device.fileno()], 1, 1)
    names = {id(relay)}
    del relay
    gc.collect()
    assert kernel.read(0, 30000) == blob.plain[:30000]
    (relay,) = (found for found in gc.get_objects() if id(found) in names)
    relay.stop(SOON_S)
    relay.close()


def test_threads_of_the_relay_take_no_signal_that_is_meant_for_python(
    relay: Relay, kernel: Kernel
) -> None:
    before = set(os.listdir("/proc/self/task"))
    relay.start([kernel.device.fileno()], 3, 3)
    threads = set(os.listdir("/proc/self/task")) - before
    assert len(threads) == 3
    assert threads.isdisjoint(str(thread.native_id) for thread in threading.enumerate())
    for thread in threads:
        status = Path(f"/proc/self/task/{thread}/status").read_text()
        blocked = re.search(r"SigBlk:\s*([0-9a-f]+)", status)
        assert blocked
        # All but SIGKILL and SIGSTOP; SIGBUS, which a cut mapping raises, once the thread has begun.
        sigbus = 1 << signal.SIGBUS - 1
        assert int(blocked[1], 16) & 0x7FFF_FFFF | sigbus == 0x7FFB_FEFF


def test_what_idle_threads_cost_is_little(relay: Relay, kernel: Kernel, blob: Blob) -> None:
    def private_kib() -> int:
        rollup = Path("/proc/self/smaps_rollup").read_text()
        found = re.search(r"Private_Dirty:\s*(\d+)", rollup)
        assert found
        return int(found[1])

    source = relay.add_source(blob.source)
    relay.add_flat(NODE, len(blob.plain), source, blob.blocks, ReadCounts())
    blob.mark()
    gc.collect()
    before = private_kib()
    relay.start([kernel.device.fileno()], 8, 8)
    for _ in range(64):
        assert len(kernel.read(0, 4096)) == 4096
    assert private_kib() - before < 1024
