"""What open_v6 refuses, and what it makes of superblocks and blob table (spec rafs-v6 §3 to §6, §16)."""

import json

import pytest

from nydusd.blob.model import NO_DIGEST, BlobFeature, Cipher, CipherKey, Codec
from nydusd.errors import FormatError
from nydusd.rafs.v6 import BootstrapV6, open_v6
from tests.support.rafs_v6_image import (
    BLOB_TABLE,
    EXT_SUPERBLOCK,
    FEATURES,
    FLAGS,
    ROOT_NID,
    SLOTS,
    SUPERBLOCK,
    BlobSpec,
    ChunkRow,
    Image,
    directory,
    make_image,
    regular,
)
from tests.support.vectors import vector

SOURCE = "/images/app/image.boot"


def small(blobs: list[BlobSpec] | None = None, flags: int = FLAGS) -> Image:
    root = directory({b"motd": regular(5, [(0, 0, 0)])})
    return make_image(root, [BlobSpec()] if blobs is None else blobs, flags=flags)


def opened(
    *blobs: BlobSpec, source: str = SOURCE, extracted_from: str | None = None
) -> BootstrapV6:
    return open_v6(small(list(blobs)).data(), source, extracted_from)


def test_a_small_image_opens() -> None:
    bootstrap = opened(BlobSpec())
    assert bootstrap.superblock.version == 6
    assert bootstrap.root_ino == ROOT_NID
    assert [blob.blob_id for blob in bootstrap.blobs] == ["b" * 64]


def test_an_image_without_blobs_opens() -> None:
    assert open_v6(make_image(directory()).data(), SOURCE).blobs == ()


@pytest.mark.parametrize(
    ("field", "offset", "code", "value"),
    [
        ("magic", SUPERBLOCK, "<I", 0xE0F5E1E3),
        ("checksum", SUPERBLOCK + 4, "<I", 1),
        ("feature_compat", SUPERBLOCK + 8, "<I", 1),
        ("blkszbits", SUPERBLOCK + 12, "B", 9),
        ("extslots", SUPERBLOCK + 13, "B", 1),
        ("inos", SUPERBLOCK + 16, "<Q", 0),
        ("meta_blkaddr", SUPERBLOCK + 40, "<I", 0xFFFFFFFF),
        ("xattr_blkaddr", SUPERBLOCK + 44, "<I", 1),
        ("feature_incompat", SUPERBLOCK + 80, "<I", 0x10C),
        ("extra_devices", SUPERBLOCK + 86, "<H", 2),
        ("devt_slotoff", SUPERBLOCK + 88, "<H", 12),
        ("s_flags", EXT_SUPERBLOCK, "<Q", FLAGS | 1 << 20),
        ("s_flags", EXT_SUPERBLOCK, "<Q", FLAGS | 1 << 32),
        ("s_flags", EXT_SUPERBLOCK, "<Q", FLAGS | 0x1),
        ("s_flags", EXT_SUPERBLOCK, "<Q", FLAGS & ~0x80),
        ("s_flags", EXT_SUPERBLOCK, "<Q", FLAGS | 0x8),
        ("s_flags", EXT_SUPERBLOCK, "<Q", FLAGS & ~0x4),
        ("s_flags", EXT_SUPERBLOCK, "<Q", FLAGS | 0x0200_0000),
        ("s_blob_table_offset", EXT_SUPERBLOCK + 8, "<Q", 4096 + 256),
        ("s_blob_table_offset", EXT_SUPERBLOCK + 8, "<Q", 0),
        ("blob table's end", EXT_SUPERBLOCK + 8, "<Q", 1 << 40),
        ("s_blob_table_size", EXT_SUPERBLOCK + 16, "<I", 255),
        ("number of blobs", EXT_SUPERBLOCK + 16, "<I", 256 * 256),
        ("s_chunk_size", EXT_SUPERBLOCK + 20, "<I", 0x18_0000),
        ("s_chunk_size", EXT_SUPERBLOCK + 20, "<I", 2048),
        ("s_chunk_size", EXT_SUPERBLOCK + 20, "<I", 32 << 20),
        ("s_chunk_size", EXT_SUPERBLOCK + 20, "<I", 0),
        ("id in the device slot", SLOTS, "<4s", b"cccc"),
        ("blocks in the device slot", SLOTS + 64, "<I", 0),
        ("blob_index", BLOB_TABLE + 64, "<I", 1),
        ("chunk_size", BLOB_TABLE + 68, "<I", 4096),
        ("chunk_count", BLOB_TABLE + 72, "<I", (1 << 24) + 1),
        ("ci_uncompressed_size", BLOB_TABLE + 72, "<I", 3),
        ("compression_algo", BLOB_TABLE + 76, "<I", 4),
        ("digest_algo", BLOB_TABLE + 80, "<I", 2),
        ("blob features", BLOB_TABLE + 84, "<I", FEATURES | 1 << 13),
        ("blob features", BLOB_TABLE + 84, "<I", FEATURES | 1 << 31),
        ("blob features", BLOB_TABLE + 84, "<I", FEATURES | BlobFeature.ZRAN),
        ("features", BLOB_TABLE + 84, "<I", FEATURES & ~1),
        ("features", BLOB_TABLE + 84, "<I", FEATURES | BlobFeature.TARFS),
        ("cipher_algo", BLOB_TABLE + 84, "<I", FEATURES | BlobFeature.ENCRYPTED | 4),
        ("compressed_size", BLOB_TABLE + 88, "<Q", (1 << 40) + 1),
        ("uncompressed_size", BLOB_TABLE + 96, "<Q", (1 << 44) + 1),
        ("blob_toc_size", BLOB_TABLE + 104, "<I", 1000),
        ("blob_toc_size", BLOB_TABLE + 104, "<I", 1 << 20),
        ("ci_compressor", BLOB_TABLE + 108, "<I", 9),
        ("end of the CI array", BLOB_TABLE + 112, "<Q", (1 << 64) - 1),
        ("ci_compressed_size", BLOB_TABLE + 120, "<Q", 33),
        ("ci_uncompressed_size", BLOB_TABLE + 128, "<Q", 48),
        ("cipher_algo", BLOB_TABLE + 216, "<I", 1),
        ("cipher_algo", BLOB_TABLE + 216, "<I", 2),
    ],
)
def test_a_broken_field_is_refused_by_name(
    field: str, offset: int, code: str, value: object
) -> None:
    image = small()
    image.patch(offset, code, value)
    with pytest.raises(FormatError) as caught:
        open_v6(image.data(), SOURCE)
    assert caught.value.field == field
    assert str(caught.value).startswith(SOURCE)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_multiple_of_the_block_size_is_refused() -> None:
    image = small()
    image.cut(len(image.data()) - 100)
    with pytest.raises(FormatError, match="multiple of 4096"):
        open_v6(image.data(), SOURCE)


@pytest.mark.parametrize("size", [0, 3, 1028, 1200, 4095])
def test_a_file_too_short_for_superblocks_is_refused(size: int) -> None:
    with pytest.raises(FormatError, match="file size"):
        open_v6(small().data()[:size], SOURCE)


def test_a_file_cut_before_its_root_inode_is_refused() -> None:
    image = small()
    image.cut(8192)
    with pytest.raises(FormatError, match="nid is 128, lies outside the file"):
        open_v6(image.data(), SOURCE)


def test_a_root_that_is_no_directory_is_refused() -> None:
    image = small()
    image.patch(SUPERBLOCK + 14, "<H", image.nid(b"/motd"))
    with pytest.raises(FormatError, match="root mode is 0o100644, must be a directory"):
        open_v6(image.data(), SOURCE)


def test_slots_that_reach_into_the_blob_table_are_refused() -> None:
    blobs = [BlobSpec(blob_id=f"{number:064x}") for number in range(22)]  # 1408 + 22 * 128 > 4096
    with pytest.raises(FormatError, match="lies in the device slots"):
        open_v6(small(blobs).data(), SOURCE)


def test_two_blobs_of_one_id_are_refused() -> None:
    with pytest.raises(FormatError, match="is that of two blobs"):
        opened(BlobSpec(), BlobSpec())


def test_two_blobs_that_would_get_one_id_from_the_file_name_are_refused() -> None:
    features = FEATURES | BlobFeature.INLINED_FS_META
    one, other = BlobSpec("1" * 64, features=features), BlobSpec("2" * 64, features=features)
    with pytest.raises(FormatError, match="is that of two blobs"):
        opened(one, other)


@pytest.mark.parametrize("blob_id", ["../../etc/passwd", "", ".hidden", "a/b", "new\nline"])
def test_an_id_that_is_no_plain_file_name_is_refused(blob_id: str) -> None:
    with pytest.raises(FormatError, match="blob id"):
        opened(BlobSpec(blob_id=blob_id))


def test_ids_shorter_than_the_field_lose_their_padding() -> None:
    assert opened(BlobSpec(blob_id="short")).blobs[0].blob_id == "short"


# Chunk table


@pytest.mark.parametrize("moved_by", [4096, 1 << 40])
def test_a_chunk_table_outside_the_file_is_as_good_as_none(
    moved_by: int, caplog: pytest.LogCaptureFixture
) -> None:
    image = make_image(directory(), [BlobSpec()], chunk_rows=[ChunkRow(0, 0, 0)])
    end = len(image.data())
    image.patch(EXT_SUPERBLOCK + 24, "<Q", end - 4096 + moved_by)
    bootstrap = open_v6(image.data(), SOURCE)
    assert bootstrap.digests(0) is None
    assert "the chunk table" in caplog.text
    assert SOURCE in caplog.text


def test_a_bootstrap_cut_at_its_chunk_table_opens(caplog: pytest.LogCaptureFixture) -> None:
    image = make_image(directory(), [BlobSpec()], chunk_rows=[ChunkRow(0, 0, 0)])
    image.cut(len(image.data()) - 4096)
    assert open_v6(image.data(), SOURCE).digests(0) is None
    assert "the chunk table" in caplog.text


@pytest.mark.parametrize(
    ("field", "offset", "value"),
    [
        ("s_chunk_table_offset", 24, 8192 + 80),
        ("s_chunk_table_offset", 24, BLOB_TABLE),
        ("s_chunk_table_size", 32, 81),
    ],
)
def test_a_misplaced_chunk_table_is_refused(field: str, offset: int, value: int) -> None:
    image = make_image(directory(), [BlobSpec()], chunk_rows=[ChunkRow(0, 0, 0)])
    image.patch(EXT_SUPERBLOCK + offset, "<Q", value)
    with pytest.raises(FormatError) as caught:
        open_v6(image.data(), SOURCE)
    assert caught.value.field == field


# What becomes of an entry


def test_chunk_data_ends_at_the_ci_array_of_a_new_blob() -> None:
    blob = opened(BlobSpec(ci_offset=4000)).blobs[0]
    assert (blob.compressed_data_size, blob.compressed_size) == (4000, 9000)


def test_a_tar_header_before_the_ci_array_is_no_chunk_data() -> None:
    features = FEATURES | BlobFeature.HAS_TAR_HEADER
    assert opened(BlobSpec(ci_offset=4000, features=features)).blobs[0].compressed_data_size == 3488
    with pytest.raises(FormatError, match="a tar header must precede it"):
        opened(BlobSpec(ci_offset=511, features=features))


def test_an_old_entry_counts_chunk_data_only_and_has_no_toc() -> None:
    old = BlobSpec(features=1, compressed_size=4000, toc_size=77, toc_digest=b"\xff" * 32)
    blob = opened(old).blobs[0]
    assert blob.compressed_data_size == 4000
    assert (blob.toc_size, blob.toc_digest) == (0, NO_DIGEST)


def test_the_meta_blob_of_a_referenced_layer_is_named_by_its_digest() -> None:
    features = FEATURES | BlobFeature.SEPARATE | BlobFeature.CHUNK_INFO_V2
    spec = BlobSpec(
        features=features,
        ci_offset=0,
        ci_uncompressed_size=48,
        meta_digest=b"\xab" * 32,
        meta_size=9,
    )
    blob = opened(spec).blobs[0]
    assert (blob.blob_id, blob.meta_blob_id) == ("b" * 64, "ab" * 32)
    assert blob.compressed_data_size == blob.compressed_size
    with pytest.raises(FormatError, match="SEPARATE needs the meta blob's id"):
        opened(BlobSpec(features=features, ci_uncompressed_size=48))


def test_extra_bytes_behind_the_records_are_for_zran_batch_and_encrypted_blobs_alone() -> None:
    v2 = FEATURES | BlobFeature.CHUNK_INFO_V2
    more = 48 + 40
    for extra in (BlobFeature.ZRAN, BlobFeature.BATCH):
        opened(BlobSpec(features=v2 | extra, ci_uncompressed_size=more))
    with pytest.raises(FormatError, match="2 chunk records take 48"):
        opened(BlobSpec(features=v2, ci_uncompressed_size=more))
    with pytest.raises(FormatError, match="2 chunk records take 48"):
        opened(BlobSpec(features=v2 | BlobFeature.BATCH, ci_uncompressed_size=47))


def test_a_key_in_the_blob_table_shows_up_nowhere() -> None:
    key, iv = b"K" * 31 + b"L", b"IVIVIVIV"
    features = FEATURES | BlobFeature.ENCRYPTED | BlobFeature.CHUNK_INFO_V2
    spec = BlobSpec(
        features=features, ci_uncompressed_size=48, cipher=1, meta_digest=key, cipher_iv=iv
    )
    bootstrap = opened(spec)
    assert bootstrap.blobs[0].cipher is Cipher.AES_128_XTS
    assert bootstrap.blobs[0].meta_blob_id == "b" * 64
    assert bootstrap.blobs[0].cipher_key == CipherKey(key, bytes(8) + iv)
    shown = repr(bootstrap.blobs)
    assert "KKKK" not in shown
    assert key.hex() not in shown
    with pytest.raises(FormatError) as caught:
        opened(BlobSpec(features=features | BlobFeature.SEPARATE, cipher=1, meta_digest=key))
    assert key.hex() not in str(caught.value)


def test_a_key_of_equal_halves_is_refused_and_not_shown() -> None:
    for key in (bytes(32), b"K" * 32):
        features = FEATURES | BlobFeature.ENCRYPTED | BlobFeature.CHUNK_INFO_V2
        with pytest.raises(FormatError, match=r"cipher key is \*\*\*, its two halves") as caught:
            opened(BlobSpec(features=features, ci_uncompressed_size=48, cipher=1, meta_digest=key))
        assert "KKKK" not in str(caught.value)


def test_unknown_compatible_feature_bits_are_ignored() -> None:
    assert opened(BlobSpec(features=FEATURES | 0x0FFF_0000)).blobs[0].features == FEATURES


def test_a_blob_of_legacy_stargz_opens() -> None:
    assert opened(BlobSpec(codec=2)).blobs[0].codec is Codec.GZIP


def test_tarfs_images_can_be_listed() -> None:
    tarfs = BlobSpec(
        codec=0,
        digester=1,
        features=0x4000_0040,
        ci_offset=0,
        ci_compressed_size=0,
        ci_uncompressed_size=0,
    )
    names = {f"{number:040}".encode(): regular(0, []) for number in range(40)}
    root = directory({b"motd": regular(5, [(0, 0, 3)]), **names})
    image = make_image(root, [tarfs], flags=0x0100_0219, block_size=512)
    bootstrap = open_v6(image.data(), SOURCE)
    assert bootstrap.blobs[0].ci is None
    root_inode = bootstrap.inode(bootstrap.root_ino)
    assert len(list(bootstrap.entries(root_inode))) == 43
    motd = bootstrap.lookup(root_inode, b"motd")
    assert motd is not None
    assert bootstrap.extents(motd, 0, 5)[0].chunk_offset == 3 * 512


# Ids of inlined bootstraps


@pytest.mark.parametrize("name", ["0123abcd", "0123abcd.image.boot", "0123abcd.blob.x.y"])
def test_a_blob_that_holds_its_bootstrap_is_named_by_the_file(name: str) -> None:
    spec = BlobSpec(blob_id="x" * 64, features=FEATURES | BlobFeature.INLINED_FS_META)
    blob = opened(spec, source=f"/cache/{name}").blobs[0]
    assert blob.blob_id == blob.meta_blob_id == "0123abcd"


def test_a_bootstrap_pulled_out_of_a_blob_names_that_blob() -> None:
    spec = BlobSpec(blob_id="x" * 64, features=FEATURES | BlobFeature.INLINED_FS_META)
    assert opened(spec, extracted_from="77aa").blobs[0].blob_id == "77aa"


def test_a_file_name_that_cannot_be_an_id_is_refused_only_where_it_counts() -> None:
    inlined = BlobSpec(blob_id="x" * 64, features=FEATURES | BlobFeature.INLINED_FS_META)
    assert opened(BlobSpec(), source="/cache/.boot").blobs[0].blob_id == "b" * 64
    with pytest.raises(FormatError, match="blob id"):
        opened(inlined, source="/cache/.boot")


# The API


def test_details_have_the_keys_and_types_of_the_reference() -> None:
    folder = vector("v6-zstd-blake3-1m")
    answer = folder / "api/before/GET_api_v1_daemon_backend@mountpoint-root.http"
    shown = json.loads(answer.read_text().splitlines()[-1])
    for rendered_by_api in ("attr_timeout", "entry_timeout"):
        del shown[rendered_by_api]
    shown["flags"] = shown["flags"]["bits"]
    bootstrap = open_v6((folder / "bootstrap").read_bytes(), "bootstrap")
    assert bootstrap.superblock.details == shown
    assert list(bootstrap.superblock.details) == list(shown)


def test_details_of_a_built_image() -> None:
    image = make_image(directory(), [BlobSpec()], prefetch=[128, 130])
    details = open_v6(image.data(), SOURCE).superblock.details
    assert details["prefetch_table_entries"] == 2
    assert details["blob_device_table_count"] == 1
    assert details["version"] == 0x600
