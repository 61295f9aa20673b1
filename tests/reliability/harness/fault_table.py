"""The rows of docs/reliability.md, and how a fault becomes one."""

from __future__ import annotations

import re
from pathlib import Path

from fault_chain import Fault

TESTS = Path(__file__).parents[1]
TABLE = TESTS.parents[1] / "docs" / "reliability.md"


def lost(fault: Fault, rate_hz: float = 10.0) -> str:
    """Packets of the bridge's and detector's that the server has not; ticks that were not made."""
    before, after = fault.before["streams"], fault.after["streams"]
    parts = []
    for name, lane in after.items():
        count = lane["lost"] - before.get(name, {"lost": 0})["lost"]
        parts += [f"{count} of {name}"] if count else []
    assert fault.ended_s is not None
    due = round(rate_hz * (fault.ended_s + fault.normal_s - fault.began_s))
    missing = max(0, due - fault.after["ticks"] + fault.before["ticks"])
    return f"packets: {', '.join(parts) or 'none'}; ticks: {missing} of {due}"


class Rows:
    """The table's rows, in the order of the faults in the sources."""

    def __init__(self) -> None:
        self.rows: dict[str, tuple[str, str, str]] = {}

    def add(self, name: str, fault: Fault, *, rate_hz: float = 10.0, note: str = "") -> None:
        """Take a fault's row; `rate_hz`: of the server's ticks."""
        loses = lost(fault, rate_hz) + (f"; {note}" if note else "")
        self.rows[name] = (fault.seen, loses, f"{fault.normal_s:.1f} s")

    def write(self, path: Path, faults: list[str]) -> None:
        lines = ["| fault | what the wearer sees | what is lost | time to normal |"]
        lines.append("|---|---|---|---|")
        lines += [f"| {' | '.join((name, *self.rows[name]))} |" for name in faults]
        text = path.read_text()
        begin, end = "<!-- table -->\n", "<!-- end of table -->"
        head, _, rest = text.partition(begin)
        _, _, tail = rest.partition(end)
        path.write_text(head + begin + "\n".join(lines) + "\n" + end + tail)


def faults_of_the_suite() -> list[str]:
    """The names of all faults that have a test, in the order of the sources."""
    names: list[str] = []
    for path in sorted(TESTS.glob("test_*.py")):
        names += re.findall(r'reliability\.add\(\s*"([^"]+)"', path.read_text())
    return names
