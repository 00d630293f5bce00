from benchmarks.imports import Import, by_package, parse

PROFILE = """import time: self [us] | cumulative | imported package
import time:       120 |        120 |   nydusd.errors
WARNING a log line between them
import time:      1000 |       1120 | nydusd.config.load
import time:       300 |        300 |     nydusd.config.model
import time:        50 |         50 | trio
"""


def test_a_profile_is_read_between_log_lines():
    assert parse(PROFILE)[:2] == [
        Import(120, 120, "nydusd.errors"),
        Import(1000, 1120, "nydusd.config.load"),
    ]
    assert len(parse(PROFILE)) == 4


def test_time_is_summed_by_room_for_ours_and_by_package_for_others():
    assert by_package(parse(PROFILE)) == {"nydusd.config": 1300, "nydusd.errors": 120, "trio": 50}
