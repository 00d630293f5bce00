from benchmarks.rows import EROFS, EXT4, FUSE, PEER, TAR_COMPLETE, Goal, Row
from benchmarks.table import Table, lines_of


def filled(values):
    table = Table([EROFS, FUSE, PEER, EXT4])
    for column, found in values.items():
        for value in found:
            table.add(TAR_COMPLETE, column, value)
    return table


def test_a_cell_is_the_median_of_the_rounds_and_a_ratio_that_of_medians():
    table = filled({EROFS: [9.0, 0.5, 0.6], PEER: [2.0, 2.0, 100.0], EXT4: [1.0]})
    (line,) = [row for row in table.markdown().splitlines() if TAR_COMPLETE.title in row]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    # erofs, fuse, peer, ext4, then erofs and fuse against the peer, then against ext4
    assert cells == [TAR_COMPLETE.title, "0.6", "", "2", "1", "0.30", "", "0.60", ""]


def test_a_goal_is_judged_by_the_column_it_is_against():
    lines = filled({EROFS: [0.6], PEER: [2.0], EXT4: [1.0]}).goals().splitlines()
    assert lines[2:] == [
        f"| {TAR_COMPLETE.title} | erofs | ≤ 0.35 of peer | 0.3 | yes |",
        f"| {TAR_COMPLETE.title} | erofs | ≤ 0.5 of ext4 | 0.6 | **no** |",
    ]


def test_a_goal_whose_other_column_was_not_measured_is_not_judged():
    assert "of peer" not in filled({EROFS: [0.6], EXT4: [1.0]}).goals()


def test_where_more_is_better_a_goal_is_a_lower_limit(monkeypatch):
    row = Row("random", "reads per s", (Goal(1.0, "peer"),), more_is_better=True)
    monkeypatch.setattr("benchmarks.table.ROWS", (row,))
    table = Table([FUSE, PEER])
    table.add(row, FUSE, 50.0)
    table.add(row, PEER, 100.0)
    assert table.goals().splitlines()[2:] == ["| reads per s | fuse | ≥ 1 of peer | 0.5 | **no** |"]


def test_a_remark_stands_below_the_table_once():
    table = filled({FUSE: [1.0]})
    table.note("fell back")
    table.note("fell back")
    assert table.markdown().endswith("|\n\n- fell back")


def test_a_markdown_table_has_one_rule_for_each_column():
    assert lines_of([("a", "b"), (1, 2)]) == "| a | b |\n|---|---|\n| 1 | 2 |"
