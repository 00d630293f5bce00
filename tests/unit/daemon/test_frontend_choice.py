import logging
from typing import Any

import pytest

from nydusd.config.model import FrontendKind, RafsConfig
from nydusd.daemon.frontend_choice import STATISTICS, Facts, choose, level

AUTO, FUSE, EROFS = FrontendKind.AUTO, FrontendKind.FUSE, FrontendKind.EROFS


def facts(asked: FrontendKind = AUTO, **changes: Any) -> Facts:
    known = Facts(asked, kernel_refuses=None, virtual_mountpoint="/", rafs=RafsConfig())
    return known._replace(**changes)


@pytest.mark.parametrize("asked", [AUTO, EROFS])
def test_the_kernel_shows_the_image_where_nothing_speaks_against_it(asked: FrontendKind) -> None:
    assert choose(facts(asked)).kind is EROFS


def test_who_asks_for_fuse_gets_it() -> None:
    assert choose(facts(FUSE)) == (FUSE, "asked for")


@pytest.mark.parametrize("asked", [AUTO, EROFS])
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kernel_refuses": "Linux 5.10 is older than 6.12"}, "Linux 5.10 is older than 6.12"),
        ({"virtual_mountpoint": "/deep"}, "the image appears at /deep, not at the root"),
        ({"virtual_mountpoint": None, "rafs": None}, "no image at start"),
        *(({"rafs": RafsConfig(**{name: True})}, name) for name in STATISTICS),
    ],
)
def test_what_speaks_against_it_is_the_reason(
    asked: FrontendKind, changes: dict[str, Any], words: str
) -> None:
    choice = choose(facts(asked, **changes))
    assert choice.kind is FUSE
    assert words in choice.reason


@pytest.mark.parametrize(
    ("asked", "taken", "expected"),
    [
        (AUTO, EROFS, logging.INFO),
        (AUTO, FUSE, logging.INFO),
        (FUSE, FUSE, logging.INFO),
        (EROFS, EROFS, logging.INFO),
        (EROFS, FUSE, logging.WARNING),
    ],
)
def test_only_a_wish_that_is_not_granted_is_a_warning(
    asked: FrontendKind, taken: FrontendKind, expected: int
) -> None:
    assert level(asked, taken) == expected
