from nydusd.kernel.native_window import NativeWindow
from nydusd.native_relay import SEGMENT, ReadCounts
from nydusd.storage.native_map import NativeMap


class FakeFiles:
    """What is registered, in place of NativeFiles."""

    def __init__(self) -> None:
        self.registered: list[int] = []
        self.refuses: set[int] = set()

    def add(self, nodeid: int, found: NativeMap, counts: ReadCounts) -> bool:
        if nodeid in self.refuses:
            return False
        self.registered.append(nodeid)
        return True

    def drop(self, nodeid: int) -> None:
        if nodeid in self.registered:
            self.registered.remove(nodeid)


def make_map(segments: int) -> NativeMap:
    return NativeMap(segments, (), None, bytes(segments * SEGMENT.size), zero_gaps=False)


def make_window(files_max: int = 4, segments_max: int = 100) -> tuple[NativeWindow, FakeFiles]:
    files = FakeFiles()
    return NativeWindow(files, files_max=files_max, segments_max=segments_max), files  # type: ignore[arg-type]


def test_beyond_its_number_of_files_the_first_one_goes_and_can_come_back() -> None:
    window, files = make_window(files_max=4)
    for nodeid in range(6):
        window.add(nodeid, make_map(1), ReadCounts())
    assert files.registered == [2, 3, 4, 5]
    assert 0 not in window
    window.add(0, make_map(1), ReadCounts())
    assert files.registered == [3, 4, 5, 0]


def test_beyond_its_number_of_segments_files_go_but_never_the_newest() -> None:
    window, files = make_window(segments_max=100)
    for nodeid, segments in enumerate((40, 40, 40, 1)):
        window.add(nodeid, make_map(segments), ReadCounts())
    assert files.registered == [1, 2, 3]
    window.add(9, make_map(1000), ReadCounts())
    assert files.registered == [9]
    window.add(10, make_map(1), ReadCounts())
    assert files.registered == [10]


def test_what_the_relay_cannot_answer_is_not_looked_at_again() -> None:
    window, files = make_window()
    files.refuses.add(2)
    window.add(1, None, ReadCounts())
    window.add(2, make_map(3), ReadCounts())
    assert 1 in window
    assert 2 in window
    assert files.registered == []


def test_files_of_an_image_go_together() -> None:
    window, files = make_window()
    for nodeid in (1 << 56, 2 << 56, 1 << 56 | 1):
        window.add(nodeid, make_map(1), ReadCounts())
    window.drop_where(lambda nodeid: nodeid >> 56 == 1)
    assert files.registered == [2 << 56]
    assert 1 << 56 not in window
