"""Edit distances between sequences of step ids."""

from __future__ import annotations

from collections.abc import Sequence


def damerau_levenshtein(
    source: Sequence[int],
    target: Sequence[int],
    *,
    insert: int = 1,
    delete: int = 1,
    substitute: int = 2,
    transpose: int = 1,
) -> int:
    """Least cost to turn `source` into `target`: the true, unrestricted Damerau-Levenshtein.

    Two elements may be transposed with others edited between them. Needs
    2 * transpose >= insert + delete, as the algorithm does; the defaults are PSR's.

    Source: Lowrance and Wagner, An Extension of the String-to-String Correction Problem, 1975.
    """
    unreachable = (len(source) + len(target) + 1) * max(insert, delete, substitute, transpose)
    # cost[i + 1][j + 1]: source[:i] to target[:j]; row and column 0 are a border never chosen
    cost = [[unreachable] * (len(target) + 2) for _ in range(len(source) + 2)]
    for i in range(len(source) + 1):
        cost[i + 1][1] = i * delete
    for j in range(len(target) + 1):
        cost[1][j + 1] = j * insert
    last_row_with: dict[int, int] = {}
    for i, mine in enumerate(source, start=1):
        last_column = 0
        for j, theirs in enumerate(target, start=1):
            row, column = last_row_with.get(theirs, 0), last_column
            swapped = (i - row - 1) * delete + transpose + (j - column - 1) * insert
            if mine == theirs:
                last_column = j
            cost[i + 1][j + 1] = min(
                cost[i][j] + (0 if mine == theirs else substitute),
                cost[i][j + 1] + delete,
                cost[i + 1][j] + insert,
                cost[row][column] + swapped,
            )
        last_row_with[mine] = i
    return cost[-1][-1]
