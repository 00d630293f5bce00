import logging

import pytest

from nydusd.kernel.fault_log import FaultLog


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def faults(clock: Clock) -> FaultLog:
    return FaultLog(quiet_s=10, now_s=clock)


def test_equal_faults_are_one_line_until_the_quiet_time_is_over(
    faults: FaultLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for offset in range(1000):
        faults.report("dead", f"read failed at {offset}")
    assert caplog.messages == ["read failed at 0"]
    clock.now_s += 10
    faults.report("dead", "read failed at 1000")
    assert caplog.messages[1:] == ["read failed at 1000 (999 more like this since the last line)"]


def test_faults_of_other_kinds_are_not_silenced(
    faults: FaultLog, caplog: pytest.LogCaptureFixture
) -> None:
    faults.report("one", "one")
    faults.report("two", "two")
    assert caplog.messages == ["one", "two"]


def test_the_end_tells_how_many_were_silenced(
    faults: FaultLog, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        faults.report("dead", "read failed")
    faults.flush()
    faults.flush()
    assert caplog.messages == ["read failed", "2 more faults of kind dead"]


def test_a_bug_keeps_its_traceback_and_level(
    faults: FaultLog, caplog: pytest.LogCaptureFixture
) -> None:
    bug = ValueError("what")
    faults.report("bug", "bug", level=logging.ERROR, bug=bug)
    assert caplog.records[0].levelno == logging.ERROR
    assert caplog.records[0].exc_info
    assert caplog.records[0].exc_info[1] is bug
