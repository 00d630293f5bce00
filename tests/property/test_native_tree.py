"""Whatever a v6 bootstrap says, C shows of it what Python shows, byte by byte, or leaves it to Python."""

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nydusd.config.model import RafsConfig
from nydusd.errors import FormatError, NydusError
from nydusd.kernel import wire
from nydusd.kernel.namespace import Namespace
from nydusd.kernel.tree import Tree
from nydusd.kernel.vfs import INDEX_SHIFT, Vfs
from nydusd.kernel.wire import Opcode
from nydusd.native_tree import NativeTree
from nydusd.rafs.bootstrap import open_bootstrap
from nydusd.rafs.model import Bootstrap
from nydusd.rafs.v6 import open_v6
from tests.property.test_rafs_v6 import EDGES, MEANINGFUL, SAMPLE
from tests.support.fuse_requests import lines_of, lookup_message, make_message, span_message
from tests.support.vectors import each_vector

HIGH = 1 << INDEX_SHIFT
DIRECTORY = 0o040000 >> 12
STEPS_MAX = 60


@pytest.fixture(autouse=True)
def faults_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A spoilt table is worth a warning."""


class Names:
    """An image of names alone."""

    def __init__(self, bootstrap: Bootstrap) -> None:
        self.bootstrap = bootstrap


class Both:
    """One tree, shown by C and by Python."""

    def __init__(self, bootstrap: Bootstrap) -> None:
        vfs = Vfs()
        tree = Tree(Names(bootstrap), RafsConfig(), mounted_at_s=1_700_000_000)  # type: ignore[arg-type]
        index = vfs.attach("/", tree)
        native = vfs.native_tree(index)
        assert native is not None
        self.tree = tree
        self.native: NativeTree = native
        self.python = Namespace(vfs)
        self.native_answers = 0

    def ask(self, message: bytes) -> bytes | None:
        """Return the answer, None if there is an error instead."""
        try:
            payload = self.python.answer(wire.parse(message))
            said = None if payload is None else bytes(payload)
        except NydusError:
            said = None
        shown = self.native.answer(message)
        if shown is not None:
            assert shown == said, message
            self.native_answers += 1
        return said

    def list(self, nodeid: int, size: int, steps: int) -> list[tuple[bytes, int, bool]]:
        """List a directory to its end, both ways; return (name, nodeid, is it a directory) of each line."""
        found = []
        after = 0
        for _ in range(steps):
            self.ask(span_message(Opcode.READDIR, nodeid, after, size))
            said = self.ask(span_message(Opcode.READDIRPLUS, nodeid, after, size))
            lines = lines_of(said, plus=True) if said else []
            found += [(line.name, line.ino, line.kind == DIRECTORY) for line in lines]
            if not lines:
                break
            after = lines[-1].cookie
        return found

    def walk(self, *, size: int = 4096, steps: int = 1 << 30) -> None:
        pending = [HIGH | self.tree.root_ino]
        for _ in range(steps):
            if not pending:
                return
            nodeid = pending.pop()
            for name, child, is_directory in self.list(nodeid, size, steps):
                for asked in (name, name + b"~", name[:-1]):
                    self.ask(lookup_message(nodeid, asked))
                self.ask(make_message(Opcode.GETATTR, child, bytes(16)))
                self.ask(make_message(Opcode.OPEN, child, bytes(8)))
                self.ask(make_message(Opcode.RELEASE, child, bytes(24)))
                if is_directory and name not in (b".", b".."):
                    pending.append(child)


def compare(data: bytes) -> None:
    try:
        both = Both(open_v6(data, "fuzzed/image.boot"))
    except FormatError:
        return
    both.walk(steps=STEPS_MAX)


@pytest.mark.parametrize("size", [400, 4096, 32_768])
def test_a_sound_tree_is_shown_by_c_alike_and_whole(size: int) -> None:
    both = Both(open_v6(SAMPLE, "image.boot"))
    both.walk(size=size)
    assert both.native_answers > 500
    counts = both.native.counts
    assert counts.open == 0
    assert counts.lookups > 100
    both.tree.stats.settle()


@given(
    st.lists(st.tuples(st.sampled_from(MEANINGFUL), st.integers(0, 255)), min_size=1, max_size=6)
)
def test_with_any_flipped_bytes_c_shows_what_python_shows(flips: list[tuple[int, int]]) -> None:
    data = bytearray(SAMPLE)
    for offset, value in flips:
        data[offset] = value
    compare(bytes(data))


@given(
    st.lists(
        st.tuples(st.sampled_from(MEANINGFUL), st.sampled_from("HIQ"), st.sampled_from(EDGES)),
        min_size=1,
        max_size=3,
    )
)
def test_with_any_extreme_number_c_shows_what_python_shows(
    patches: list[tuple[int, str, int]],
) -> None:
    data = bytearray(SAMPLE)
    for offset, code, value in patches:
        raw = struct.pack("<Q", value)[: struct.calcsize(code)]
        data[offset : offset + len(raw)] = raw
    compare(bytes(data[: len(SAMPLE)]))


@given(
    st.sampled_from(list(Opcode)),
    st.integers(0, (1 << 64) - 1) | st.integers(HIGH, HIGH + 4096),
    st.binary(max_size=80),
)
def test_to_any_request_c_says_what_python_says(opcode: Opcode, nodeid: int, body: bytes) -> None:
    Both(open_v6(SAMPLE, "image.boot")).ask(make_message(opcode, nodeid, body))


@pytest.mark.parametrize("path", each_vector("*/bootstrap"))
def test_images_of_others_are_shown_alike(path: Path) -> None:
    try:
        bootstrap = open_bootstrap(path)
    except FormatError:
        pytest.skip("refused: the parsers' tests say why")
    if bootstrap.mapped_tree() is None:
        pytest.skip("v5: only Python shows it")
    both = Both(bootstrap)
    both.walk(steps=2000)
    assert both.native_answers
