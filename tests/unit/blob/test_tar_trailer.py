"""Tar headers behind the segments of a blob."""

import io
import tarfile

import pytest

from nydusd.blob.segment import ByteRange, Segment
from nydusd.blob.tar_trailer import (
    Trailer,
    read_trailer,
    segment_before,
    trailer_range,
    walk_back,
    write_trailer,
)
from nydusd.errors import FormatError
from tests.support.blob_bytes import make_trailer


def walk(blob: bytes) -> tuple[Segment, ...]:
    """Drive `walk_back` over bytes in memory."""
    plan = walk_back(len(blob), "b10b")
    answer: bytes | None = None
    while True:
        try:
            wanted = plan.send(answer) if answer is not None else next(plan)
        except StopIteration as end:
            found: tuple[Segment, ...] = end.value
            return found
        assert wanted.offset >= 0
        answer = blob[wanted.offset : wanted.end]


@pytest.mark.parametrize("size", [0, 1, 4128, 8**11 - 1])
def test_name_and_size_are_read(size: int) -> None:
    assert read_trailer(make_trailer(b"blob.meta", size)) == Trailer("blob.meta", size)


@pytest.mark.parametrize("size", [0, 4128, 8**11 - 1])
def test_what_is_written_is_what_the_reference_writes(size: int) -> None:
    assert write_trailer(Trailer("blob.meta", size)) == make_trailer(b"blob.meta", size)


@pytest.mark.parametrize("size", [8**11, 1 << 40, (1 << 63) - 1])
def test_sizes_beyond_octal_are_written_in_base_256(size: int) -> None:
    raw = write_trailer(Trailer("image.blob", size))
    assert raw[124] == 0x80
    assert read_trailer(raw).size == size
    assert tarfile.TarInfo.frombuf(raw, "utf-8", "strict").size == size


def test_pythons_own_tar_headers_are_understood() -> None:
    info = tarfile.TarInfo("image.boot")
    info.size = 1234
    raw = info.tobuf(tarfile.GNU_FORMAT)
    assert read_trailer(memoryview(raw)) == Trailer("image.boot", 1234)


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"magic": b"ustar\x0000"}, "magic"),
        ({"magic": bytes(8)}, "magic"),
        ({"typeflag": b"5"}, "type"),
        ({"typeflag": b"\0"}, "type"),
        ({"checksum": b"000000\0 "}, "checksum"),
        ({"checksum": b"zzzzzz\0 "}, "checksum"),
        ({"size_field": b"0000000012x\0"}, "size"),
        ({"size_field": b"            "}, "size"),
        ({"size_field": b"\xff" * 12}, "size"),
        ({"size_field": b"-0000000001\0"}, "size"),
    ],
    ids=str,
)
def test_anything_else_is_refused(fields: dict[str, bytes], rule: str) -> None:
    with pytest.raises(FormatError, match=f"b10b: tar trailer {rule}"):
        read_trailer(make_trailer(b"image.boot", 10, **fields), "b10b")


@pytest.mark.parametrize("name", [b"\xffname", b"two\0names"])
def test_names_are_ascii(name: bytes) -> None:
    with pytest.raises(FormatError, match="name"):
        read_trailer(make_trailer(name, 10))


@pytest.mark.parametrize("length", [0, 511, 513])
def test_a_header_has_512_bytes(length: int) -> None:
    with pytest.raises(FormatError, match="length"):
        read_trailer(make_trailer(b"image.boot", 10).ljust(513)[:length])


def test_segments_are_found_from_the_end() -> None:
    contents = {"image.blob": b"data" * 100, "blob.meta": b"", "image.boot": b"b" * 4096}
    blob = b""
    wanted = []
    for name, content in contents.items():
        wanted.append(Segment(name, len(blob), len(content), len(content)))
        blob += content + make_trailer(name.encode(), len(content))
    assert walk(blob) == tuple(wanted)
    assert walk(b"") == ()


@pytest.mark.parametrize("extra", [1, 511, 512, 5000])
def test_bytes_that_no_trailer_names_are_refused(extra: int) -> None:
    with pytest.raises(FormatError):
        walk(b"x" * extra + make_trailer(b"image.blob", 0))


def test_a_segment_larger_than_the_blob_is_refused() -> None:
    with pytest.raises(FormatError, match="must fit"):
        walk(b"x" + make_trailer(b"image.blob", 2))
    assert segment_before(Trailer("a", 5), 5).offset == 0


def test_a_chain_without_end_is_refused() -> None:
    with pytest.raises(FormatError, match="too many"):
        walk(make_trailer(b"image.blob", 0) * 100)


def test_a_trailer_needs_512_bytes_before_it() -> None:
    assert trailer_range(512) == ByteRange(0, 512)
    with pytest.raises(FormatError, match="too short"):
        trailer_range(511)


def test_readers_of_tar_files_see_the_last_segment() -> None:
    # Not our format, but a check that the header is a header: a tar file with it in front is read.
    archive = make_trailer(b"image.boot", 3) + b"abc".ljust(512, b"\0") + bytes(1024)
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        member = tar.extractfile("image.boot")
        assert member is not None
        assert member.read() == b"abc"
