"""docs/reliability.md tells of the faults that have a test, and of no others."""

from __future__ import annotations

import pytest

from fault_chain import Sample, seen
from fault_table import TABLE, faults_of_the_suite


def test_the_table_has_a_row_for_each_fault_of_the_suite(pytestconfig: pytest.Config) -> None:
    if pytestconfig.getoption("--write-table", default=False):
        pytest.skip("it is written when the suite ends")
    lines = TABLE.read_text().splitlines()
    begin, end = lines.index("<!-- table -->"), lines.index("<!-- end of table -->")
    rows = [line.split("|")[1:-1] for line in lines[begin + 3 : end]]
    assert [row[0].strip() for row in rows] == faults_of_the_suite()
    assert len({row[0] for row in rows}) == len(rows) > 20
    assert all(len(row) == 4 and all(cell.strip() for cell in row) for row in rows)


def test_what_was_seen_tells_stale_guidance_from_fresh() -> None:
    def sample(time_s: float, text: str, *, is_fresh: bool = True) -> Sample:
        return Sample(time_s=time_s, text=text, is_fresh=is_fresh)

    assert seen([sample(0, "Fit it."), sample(1, "Next one.")]) == "the step"
    blind = [sample(0, "Fit it."), sample(4, "I can't see."), sample(8, "Fit it.")]
    assert seen(blind) == 'the step, then "I can\'t see.", then the step'
    stale = [sample(n, "Fit it.", is_fresh=n == 0) for n in range(5)]
    assert seen(stale) == "the step (stale for 3.0 s)"
    assert seen([sample(0, ""), sample(1, "Fit it.")]) == "nothing, then the step"
