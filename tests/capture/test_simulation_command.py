import json
import subprocess
import sys
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
