"""Steps that require each other: knots in the order of a procedure, and a cycle of each.

A knot is a strongly connected component of the graph of requirements that holds a cycle. All is
linear in the graph.

Source: Tarjan, Depth-first search and linear graph algorithms, SIAM J. Comput. 1972.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence


def find_knots(requires: Mapping[int, Sequence[int]]) -> list[set[int]]:
    """Sets of steps of which each requires every other one of its set, directly or not.

    Args:
        requires: Per step id the ids it requires; ids that are no key are ignored.

    Returns:
        The sets, by their smallest id; a single step where it requires itself.
    """
    order: dict[int, int] = {}  # of discovery
    lowest: dict[int, int] = {}  # earliest step still open that a step leads to
    open_steps: list[int] = []
    is_open: set[int] = set()
    knots = []
    for start in requires:
        if start in order:
            continue
        pending = [(start, iter(requires[start]))]
        while pending:
            step_id, others = pending[-1]
            if step_id not in order:
                order[step_id] = lowest[step_id] = len(order)
                open_steps.append(step_id)
                is_open.add(step_id)
            other = next(others, None)
            if other is None:
                pending.pop()
                if pending:
                    above = pending[-1][0]
                    lowest[above] = min(lowest[above], lowest[step_id])
                if lowest[step_id] == order[step_id]:
                    knot = _take_until(step_id, open_steps)
                    is_open -= knot
                    if len(knot) > 1 or step_id in requires[step_id]:
                        knots.append(knot)
            elif other in is_open:
                lowest[step_id] = min(lowest[step_id], order[other])
            elif other in requires and other not in order:
                pending.append((other, iter(requires[other])))
    return sorted(knots, key=min)


def _take_until(step_id: int, open_steps: list[int]) -> set[int]:
    taken = set[int]()
    while step_id not in taken:
        taken.add(open_steps.pop())
    return taken


def cycle_in(knot: set[int], requires: Mapping[int, Sequence[int]]) -> list[int]:
    """A shortest cycle through a knot's smallest id, from it on; each id requires the next."""
    start = min(knot)
    came_from: dict[int, int] = {}
    reached = deque([start])
    while reached:
        step_id = reached.popleft()
        for other in requires[step_id]:
            if other == start:
                cycle = [step_id]
                while cycle[-1] != start:
                    cycle.append(came_from[cycle[-1]])
                return cycle[::-1]
            if other in knot and other not in came_from:
                came_from[other] = step_id
                reached.append(other)
    raise AssertionError(f"{sorted(knot)} is no knot")
