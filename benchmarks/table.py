"""Measured values, and the Markdown that is made of them: medians, ratios, what was to be reached."""

from collections.abc import Iterable, Sequence
from statistics import median

from benchmarks.rows import BASES, EROFSFUSE, ROWS, Goal, Row


class Table:
    """Values by row and column, one for each round."""

    def __init__(self, columns: Sequence[str]) -> None:
        self.columns = tuple(columns)
        self._values: dict[tuple[Row, str], list[float]] = {}
        self._notes: dict[str, None] = {}

    def add(self, row: Row, column: str, value: float) -> None:
        """Keep one round's value."""
        self._values.setdefault((row, column), []).append(value)

    def note(self, text: str) -> None:
        """Keep a remark for below the table; the same one is printed once."""
        self._notes[text] = None

    def median(self, row: Row, column: str) -> float | None:
        """Return the median of the rounds; None where the column has no such value."""
        values = self._values.get((row, column))
        return median(values) if values else None

    def ratio(self, row: Row, column: str, base: str) -> float | None:
        """Return how a column's median stands to another's."""
        value, other = self.median(row, column), self.median(row, base)
        return value / other if value is not None and other else None

    def markdown(self) -> str:
        """Return the table of medians and ratios, then the notes."""
        pairs = [
            (column, base)
            for base in BASES
            if base in self.columns
            for column in self.columns
            if column not in (*BASES, EROFSFUSE)
        ]
        lines = [["row", *self.columns, *(f"{column} / {base}" for column, base in pairs)]]
        for row in ROWS:
            cells = [number(self.median(row, column)) for column in self.columns]
            if any(cells):
                ratios = [self.ratio(row, *pair) for pair in pairs]
                lines.append(
                    [row.title, *cells, *("" if r is None else f"{r:.2f}" for r in ratios)]
                )
        return "\n\n".join([lines_of(lines), "\n".join(f"- {text}" for text in self._notes)])

    def goals(self) -> str:
        """Return a table of the goals whose columns were measured; nothing if there are none."""
        lines = [["row", "frontend", "goal", "measured", "reached"]]
        for row in ROWS:
            for goal in row.goals:
                lines += [
                    [
                        row.title,
                        column,
                        _asked(row, goal),
                        f"{found:.3g}",
                        _verdict(row, goal, found),
                    ]
                    for column in self.columns
                    if column in goal.frontends
                    and (found := self._found(row, goal, column)) is not None
                ]
        return lines_of(lines) if len(lines) > 1 else ""

    def _found(self, row: Row, goal: Goal, column: str) -> float | None:
        if goal.against is None:
            return self.median(row, column)
        return self.ratio(row, column, goal.against)


def lines_of(rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table; the first row is its head."""
    lines = [f"| {' | '.join(map(str, row))} |" for row in rows]
    return "\n".join([lines[0], "|---" * (lines[0].count("|") - 1) + "|", *lines[1:]])


def number(value: float | None) -> str:
    """Return three digits of a value, more where it is larger; nothing for None."""
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _asked(row: Row, goal: Goal) -> str:
    sign = "≥" if row.more_is_better else "≤"
    return f"{sign} {goal.limit:g}" + (f" of {goal.against}" if goal.against else "")


def _verdict(row: Row, goal: Goal, found: float) -> str:
    reached = found >= goal.limit if row.more_is_better else found <= goal.limit
    return "yes" if reached else "**no**"
