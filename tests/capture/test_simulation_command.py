import json
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest


def keystep(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "keystep_capture.cli", "simulate", "generate", *arguments]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=100, check=False
    )


def test_a_data_set_lies_in_a_folder_named_for_its_settings(tmp_path: Path) -> None:
    done = keystep("--task", "lamp", "--seed", "5", "--limit-s", "2", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "keystep-data" / "simulated" / "lamp-5-learn-o0.5-m1-2s"
    about = json.loads((folder / "person_000" / "session.json").read_text())
    assert about["simulated"] is True
    assert about["frames"] == pytest.approx(20, abs=1)
    assert (folder / "person_000" / "part-000.mcap").stat().st_size > 100_000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--task", "bicycle"), "known tasks: cart, gearbox, lamp"),
        (("--profile", "huge"), "known: learn, full"),
        (("--occlusion", "2"), "--occlusion"),
        (("--out", "."), "holds no data set"),
    ],
)
def test_wrong_settings_are_one_line(tmp_path: Path, arguments, said: str) -> None:
    (tmp_path / "something.txt").touch()
    done = keystep(*arguments, folder=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_data_set_is_generated_by_one_process_at_a_time_and_its_helpers_die_with_it(
    tmp_path: Path,
) -> None:
    options = ["--task", "lamp", "--people", "2", "--jobs", "2", "--out", "set"]
    command = [sys.executable, "-m", "keystep_capture.cli", "simulate", "generate", *options]
    running = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
    try:
        _wait(lambda: len(list(tmp_path.glob("set/*.partial"))) == 2, running)
        second = keystep(*options, folder=tmp_path)
        assert (second.returncode, "another process" in second.stderr) == (1, True)
        helpers = _children(running.pid)
        assert len(helpers) >= 2
    finally:
        running.kill()
        running.wait()
    _wait(lambda: not any(_lives(pid) for pid in helpers))


def _wait(until, running: subprocess.Popen | None = None) -> None:
    for _ in range(2400):
        if until():
            return
        assert running is None or running.poll() is None
        time.sleep(0.05)
    raise AssertionError("it did not come")


def _children(parent: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[1]) == parent:
                found.append(int(path.parent.name))
    return found


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
