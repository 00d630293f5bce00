import errno

import pytest

from nydusd import errors
from nydusd.kernel.errno_map import Refusal, errno_of


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (errors.BackendError("503"), errno.EIO),
        (errors.ThrottledError("429"), errno.EIO),
        (errors.AuthError("401"), errno.EACCES),
        (errors.NotFoundError("inode"), errno.ENOENT),
        (errors.UnsupportedError("codec"), errno.EOPNOTSUPP),
        (errors.FormatError("size", 1, "must be 2"), errno.EIO),
        (errors.IntegrityError("digest"), errno.EIO),
        (errors.ClosedError("blob"), errno.EIO),
        (Refusal(errno.ENOTDIR, "a file"), errno.ENOTDIR),
    ],
)
def test_each_error_has_its_errno(error: errors.NydusError, number: int) -> None:
    assert errno_of(error) == number


def every_class(cls: type) -> set[type]:
    return {cls}.union(*(every_class(sub) for sub in cls.__subclasses__()))


def test_no_fault_of_ours_is_blamed_on_the_caller() -> None:
    for cls in every_class(errors.NydusError) - {Refusal}:
        assert errno_of(cls.__new__(cls)) != errno.EINVAL
