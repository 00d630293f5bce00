"""Rules of a blob table entry that v5 and v6 share (spec blob §2, §4, §5)."""

import pytest

from nydusd.blob.features import (
    BLOB_ID_BYTES_MAX,
    checked_blob_id,
    data_blob_id,
    data_size,
    id_from_file_name,
    known_features,
    meta_blob_id,
    strict_features,
)
from nydusd.blob.model import BlobFeature as Feature
from nydusd.errors import FormatError

NEW = Feature.CAP_TAR_TOC
OWN, FILE = "e" * 64, "0a1b"


@pytest.mark.parametrize("bit", [12, 13, 14, 15, 31])
def test_reserved_bits_are_refused_in_v6_and_dropped_in_v5(bit: int) -> None:
    word = NEW | 1 << bit
    with pytest.raises(FormatError, match="boot: blob features is 0x"):
        strict_features(word, "boot")
    assert known_features(word) == NEW


@pytest.mark.parametrize("bit", range(16, 28))
def test_compatible_bits_are_ignored(bit: int) -> None:
    assert strict_features(NEW | 1 << bit) == NEW
    assert known_features(NEW | 1 << bit) == NEW


@pytest.mark.parametrize("feature", [Feature.ZRAN, Feature.BATCH, Feature.ENCRYPTED])
def test_features_kept_in_v2_records_need_them(feature: Feature) -> None:
    with pytest.raises(FormatError, match="need CHUNK_INFO_V2"):
        strict_features(NEW | feature)
    assert strict_features(NEW | feature | Feature.CHUNK_INFO_V2) & feature


def test_an_encrypted_blob_has_no_room_for_another_blobs_digest() -> None:
    with pytest.raises(FormatError, match="ENCRYPTED excludes SEPARATE"):
        strict_features(Feature.ENCRYPTED | Feature.SEPARATE | Feature.CHUNK_INFO_V2)


@pytest.mark.parametrize(
    ("features", "ci_offset", "size"),
    [
        (Feature.SEPARATE | NEW, 0, 9000),
        (Feature.SEPARATE | NEW | Feature.HAS_TAR_HEADER, 0, 9000),
        (NEW, 4000, 4000),
        (NEW | Feature.HAS_TAR_HEADER, 4000, 3488),
        (NEW, None, 9000),
        (NEW | Feature.HAS_TAR_HEADER, None, 8488),
        (Feature.ALIGNED, 4000, 9000),
        (Feature.HAS_TAR_HEADER, None, 9000),
    ],
)
def test_the_end_of_chunk_data(features: Feature, ci_offset: int | None, size: int) -> None:
    assert data_size(features, 9000, ci_offset) == size


@pytest.mark.parametrize("end", [0, 511])
def test_no_room_for_a_tar_header_is_an_error(end: int) -> None:
    with pytest.raises(FormatError, match="a tar header must precede it"):
        data_size(NEW | Feature.HAS_TAR_HEADER, end, None)
    with pytest.raises(FormatError, match="a tar header must precede it"):
        data_size(NEW | Feature.HAS_TAR_HEADER, 9000, end)


@pytest.mark.parametrize("raw", [b"a" * 64, b"sha256:ab", b"x", b"model.bin", "ümlaut".encode()])
def test_plain_names_are_ids(raw: bytes) -> None:
    assert checked_blob_id(raw).encode() == raw


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b".",
        b"..",
        b".cache",
        b"a/b",
        b"/etc",
        b"a\0b",
        b"a\nb",
        b"\x1b[2J",
        b"\xff\xfe",
        b"x" * (BLOB_ID_BYTES_MAX + 1),
    ],
)
def test_names_that_could_do_harm_are_not(raw: bytes) -> None:
    with pytest.raises(FormatError, match="boot: blob id") as caught:
        checked_blob_id(raw, "boot")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("features", "extracted", "blob_id"),
    [
        (NEW, False, OWN),
        (NEW, True, OWN),
        (NEW | Feature.INLINED_FS_META, False, FILE),
        (NEW | Feature.INLINED_FS_META, True, FILE),
        (NEW | Feature.INLINED_FS_META | Feature.SEPARATE, False, OWN),
        (NEW | Feature.INLINED_FS_META | Feature.EXTERNAL, False, OWN),
        (Feature.ALIGNED, False, OWN),
        (Feature.ALIGNED, True, FILE),
        (Feature.INLINED_FS_META, False, FILE),
    ],
)
def test_which_blobs_are_named_by_the_bootstraps_file(
    features: Feature, extracted: bool, blob_id: str
) -> None:
    name = f"{FILE}.image.boot"
    assert data_blob_id(OWN, features, file_name=name, extracted=extracted) == blob_id


def test_the_file_name_counts_up_to_its_first_dot() -> None:
    assert id_from_file_name("0a1b.image.boot") == "0a1b"
    assert id_from_file_name("0a1b") == "0a1b"
    with pytest.raises(FormatError, match="blob id"):
        id_from_file_name(".image.boot")
    with pytest.raises(FormatError, match="blob id"):
        id_from_file_name("\udcff.boot")


def test_the_meta_blob_is_the_data_blob_unless_separate() -> None:
    digest = b"\xcd" * 32
    assert meta_blob_id(OWN, NEW, digest, file_name=FILE) == OWN
    separate = NEW | Feature.SEPARATE
    assert meta_blob_id(OWN, separate, digest, file_name=FILE) == "cd" * 32
    inlined = separate | Feature.INLINED_FS_META
    assert meta_blob_id(OWN, inlined, digest, file_name="77.boot") == "77"
    with pytest.raises(FormatError, match="needs the meta blob's id"):
        meta_blob_id(OWN, separate, bytes(32), file_name=FILE)
