"""The lock that tells a served EROFS mount from a dead one."""

from pathlib import Path

import pytest

from nydusd.kernel.mount_claim import MountClaim, is_unclaimed

DEVICE, OTHER = 47, 48


@pytest.fixture
def metadata(tmp_path: Path) -> Path:
    path = tmp_path / "boot"
    path.write_bytes(b"short")  # locks reach behind the end
    return path


def test_a_claim_is_of_one_mount_and_ends_with_its_release(metadata: Path) -> None:
    claim = MountClaim(metadata, DEVICE)
    assert not is_unclaimed(metadata, DEVICE)
    assert is_unclaimed(metadata, OTHER)
    claim.release()
    claim.release()
    assert is_unclaimed(metadata, DEVICE)


def test_two_claims_end_with_the_second(metadata: Path) -> None:
    dying, successor = MountClaim(metadata, DEVICE), MountClaim(metadata, DEVICE)
    dying.release()
    assert not is_unclaimed(metadata, DEVICE)
    successor.release()
    assert is_unclaimed(metadata, DEVICE)


def test_who_looks_ends_nobodys_claim(metadata: Path) -> None:
    claim = MountClaim(metadata, DEVICE)
    assert not is_unclaimed(metadata, DEVICE)
    assert not is_unclaimed(metadata, DEVICE)
    claim.release()


def test_of_a_file_that_is_gone_nobody_is_said_to_be_dead(tmp_path: Path) -> None:
    MountClaim(tmp_path / "gone", DEVICE).release()
    assert not is_unclaimed(tmp_path / "gone", DEVICE)
