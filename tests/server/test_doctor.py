"""`keystep doctor`: real ports, real disks, real model files, each found as it stands."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from keystep_capture.errors import ConfigError
from keystep_models.cues.appearance_cue import appearance_manifest_path
from keystep_server.config import ServerConfig
from keystep_server.doctor.clocks import check_clocks
from keystep_server.doctor.database import check_database
from keystep_server.doctor.disk import check_data_dir
from keystep_server.doctor.ports import check_ports, port_holder
from keystep_server.doctor.remote import check_server
from keystep_server.doctor.software import check_model, check_packages
from keystep_server.storage import Store


def doctor(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "keystep_capture.cli", "doctor", *arguments],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        **options,
    )


@pytest.fixture
def free_ports(tmp_path: Path) -> Path:
    """Settings whose ports are free, so that only what a test breaks is a problem."""
    path = tmp_path / "server.toml"
    path.write_text(
        'rest_port = 0\nwire_bind = "tcp://127.0.0.1:*"\npublish_bind = "tcp://127.0.0.1:*"\n'
    )
    return path


def levels(report: dict[str, Any]) -> dict[str, str]:
    return {f"{f['area']}/{f['name']}": f["level"] for f in report["findings"]}


def test_a_machine_that_can_run_the_server_has_no_problem(free_ports: Path) -> None:
    done = doctor("--json", "--config", str(free_ports), "--data-dir", str(free_ports.parent))
    report = json.loads(done.stdout)
    assert (done.returncode, report["problems"], done.stderr) == (0, 0, "")
    assert {"software/python", "models/appearance", "ports/wire", "disk/write"} <= set(
        levels(report)
    )


def test_every_problem_has_a_remedy_and_the_exit_code_says_so(
    free_ports: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    bad = ("--data-dir", str(tmp_path / "file" / "below"), "--bundle-dir", str(tmp_path / "none"))
    done = doctor("--json", "--config", str(free_ports), *bad)
    report = json.loads(done.stdout)
    assert done.returncode == 1
    problems = [finding for finding in report["findings"] if finding["level"] == "problem"]
    assert {finding["area"] for finding in problems} == {"models", "disk"}
    assert report["problems"] == len(problems)
    assert all(finding["remedy"] and "\n" not in finding["remedy"] for finding in problems)


def test_the_table_names_what_is_wrong_and_what_to_do(free_ports: Path) -> None:
    wide = {**os.environ, "COLUMNS": "300"}
    bundle = ("--bundle-dir", str(free_ports.parent / "none"))
    done = doctor("--config", str(free_ports), *bundle, env=wide)
    assert done.returncode == 1
    assert "expected a manifest at" in done.stdout
    assert "-> check out or install the file again" in done.stdout
    assert "1 problems" in done.stdout


def test_wrong_settings_are_a_finding_and_the_rest_is_still_looked_at(tmp_path: Path) -> None:
    (tmp_path / "server.toml").write_text("frobnicate = 1\n")
    done = doctor("--json", "--config", str(tmp_path / "server.toml"))
    report = json.loads(done.stdout)
    assert done.returncode == 1
    assert levels(report)["settings/server"] == "problem"
    assert levels(report)["software/packages"] == "ok"


def test_a_base_port_without_a_headset_is_wrong_usage() -> None:
    done = doctor("--base-port", "3800")
    assert done.returncode == 2
    assert "give --headset too" in done.stderr


# -- packages and models -------------------------------------------------------------------------


@pytest.fixture
def distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The metadata of a distribution `made-up` on the path."""
    folder = tmp_path / "made_up-1.0.dist-info"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    return folder / "METADATA"


def test_packages_that_are_missing_or_too_old_are_problems(distribution: Path) -> None:
    distribution.write_text(
        "Metadata-Version: 2.1\nName: made-up\nVersion: 1.0\n"
        "Requires-Dist: numpy>=99\nRequires-Dist: not-there-at-all>=1\nRequires-Dist: rich>=1\n"
        "Requires-Dist: extra-only>=1; extra == 'more'\n"
    )
    found = {finding.name: finding for finding in check_packages("made-up")}
    assert set(found) == {"numpy", "not-there-at-all"}
    assert f"{version('numpy')} is there, numpy>=99 is required" in found["numpy"].detail
    assert "is missing" in found["not-there-at-all"].detail


def test_a_distribution_that_is_not_installed_is_a_problem() -> None:
    (finding,) = check_packages("keystep-that-is-not-there")
    assert (finding.level, finding.detail) == ("problem", "is not installed as a package")


def test_the_shipped_model_is_loaded_and_says_what_runs_it() -> None:
    (finding,) = check_model(appearance_manifest_path())
    assert finding.level == "ok"
    assert "runs on CPUExecutionProvider" in finding.detail


def test_a_corrupt_model_file_is_a_problem(tmp_path: Path) -> None:
    folder = shutil.copytree(appearance_manifest_path().parent, tmp_path / "appearance")
    model = next(folder.glob("*.onnx"))
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 1
    model.write_bytes(content)
    (finding,) = check_model(folder / "manifest.json")
    assert finding.level == "problem"
    assert "corrupt or another version" in finding.detail


# -- ports ---------------------------------------------------------------------------------------


def settings(tmp_path: Path, **ports: Any) -> ServerConfig:
    free = {"rest_port": 0, "wire_bind": "tcp://127.0.0.1:*", "publish_bind": "tcp://127.0.0.1:*"}
    return ServerConfig(data_dir=tmp_path, **{**free, **ports})


def test_taken_ports_name_the_process_that_has_them(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = int(holder.getsockname()[1])
        config = settings(tmp_path, rest_port=port, wire_bind=f"tcp://127.0.0.1:{port}")
        rest, wire, publish = check_ports(config)
    for finding in (rest, wire):
        assert finding.level == "problem"
        assert f"taken by process {os.getpid()}" in finding.detail
        assert f"stop process {os.getpid()}" in finding.remedy
    assert publish.level == "ok"
    assert port_holder(port) is None


async def test_a_keystep_server_that_runs_already_is_a_warning(
    live_command: Any, tmp_path: Path
) -> None:
    wire = live_command["wire"]
    finding = check_ports(settings(tmp_path, wire_bind=wire))[1]
    assert finding.level == "warning"
    assert "a Keystep server runs already" in finding.remedy


@pytest.fixture
async def live_command(tmp_path: Path) -> Any:
    """`keystep serve` as a process."""
    from keystep_server.demo_processes import KeystepProcess

    ports = ("--rest-port", "0", "--publish-bind", "tcp://127.0.0.1:*")
    wire = ("--wire-bind", "tcp://127.0.0.1:*", "--data-dir", str(tmp_path / "data"))
    server = await KeystepProcess.start("serve", tmp_path, "serve", *ports, *wire)
    try:
        yield await server.ready()
    finally:
        await server.kill()


# -- disk and clock ------------------------------------------------------------------------------


def test_a_data_dir_that_does_not_exist_yet_is_not_made(tmp_path: Path) -> None:
    write, space = check_data_dir(tmp_path / "not" / "there")
    assert (write.level in ("ok", "warning"), str(tmp_path) in write.detail) == (True, True)
    assert "hours of one headset" in space.detail
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A server's own, with as many pages as an evening's."""
    path = tmp_path / "keystep.db"
    Store.open(f"sqlite:///{path}").close()
    with closing(sqlite3.connect(path)) as file, file:
        file.execute("CREATE TABLE padding (text TEXT)")
        file.executemany("INSERT INTO padding VALUES (?)", [("x" * 500,)] * 5000)
    return path


def test_a_whole_database_is_fine_and_nothing_is_left_beside_it(database: Path) -> None:
    before = database.read_bytes()
    beside = sorted(database.parent.iterdir())
    (finding,) = check_database(f"sqlite:///{database}")
    assert (finding.level, "is whole" in finding.detail) == ("ok", True)
    assert database.read_bytes() == before
    assert sorted(database.parent.iterdir()) == beside


def test_a_running_servers_database_is_looked_at_too(database: Path) -> None:
    store = Store.open(f"sqlite:///{database}")
    (finding,) = check_database(f"sqlite:///{database}")
    store.close()
    assert finding.level == "ok"


def test_a_database_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    (finding,) = check_database(f"sqlite:///{tmp_path / 'not' / 'keystep.db'}")
    assert (finding.level, list(tmp_path.iterdir())) == ("ok", [])


def zero_a_page(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2 & ~4095)
        file.write(bytes(4096))


def cut_off(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2 & ~4095)


def renumber(path: Path) -> None:
    with closing(sqlite3.connect(path)) as file, file:
        file.execute("UPDATE alembic_version SET version_num = '9999'")


def unversion(path: Path) -> None:
    with closing(sqlite3.connect(path)) as file, file:
        file.execute("DROP TABLE alembic_version")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.write_bytes(os.urandom(3000)), "cannot be read"),
        (zero_a_page, "damaged|cannot be read"),
        (cut_off, "damaged|cannot be read"),
        (renumber, "does not know \\(9999\\)"),
        (unversion, "no database of Keystep"),
    ],
)
def test_a_damaged_database_is_a_problem(
    database: Path, damage: Callable[[Path], object], said: str
) -> None:
    damage(database)
    (finding,) = check_database(f"sqlite:///{database}")
    assert finding.level == "problem"
    assert re.search(said, finding.detail)
    assert finding.remedy


def test_a_database_too_large_to_look_at_is_a_warning(database: Path) -> None:
    (finding,) = check_database(f"sqlite:///{database}", check_s=-1.0)
    assert (finding.level, "sqlite3" in finding.remedy) == ("warning", True)


def test_a_data_dir_below_a_file_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (finding,) = check_data_dir(tmp_path / "file" / "data")
    assert (finding.level, "is no folder" in finding.detail) == ("problem", True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_data_dir_without_write_permission_is_a_problem(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    (finding,) = check_data_dir(tmp_path)
    assert "Permission denied" in finding.detail


def test_a_data_dir_on_a_read_only_file_system_is_a_problem() -> None:
    (finding,) = check_data_dir(Path("/proc/self"))
    assert finding.level == "problem"
    assert "cannot be written to" in finding.detail


def test_a_disk_that_takes_no_more_is_a_problem_and_nothing_is_left_on_it(
    free_ports: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    done = doctor(
        *("--json", "--config", str(free_ports), "--data-dir", str(data)),
        # The kernel refuses to let a file grow past this, as a full disk does.
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)),
    )
    report = json.loads(done.stdout)
    assert (done.returncode, levels(report)["disk/write"]) == (1, "problem")
    assert list(data.iterdir()) == []


def test_a_full_disk_is_a_problem(tmp_path: Path) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", tmp_path],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("only root may mount a small file system")
    try:
        (finding,) = check_data_dir(tmp_path / "data")
        assert (finding.level, "No space left" in finding.detail) == ("problem", True)
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_both_clocks_are_looked_at() -> None:
    monotonic, wall = check_clocks()
    assert (monotonic.name, monotonic.level) == ("monotonic", "ok")
    assert wall.name == "ntp"
    assert wall.level == "ok" or wall.remedy


# -- a running server ----------------------------------------------------------------------------


async def test_a_running_server_is_ready_on_both_sides(live_command: Any) -> None:
    (rest,) = check_server(live_command["rest"])
    (wire,) = check_server(live_command["wire"])
    assert (rest.level, wire.level) == ("ok", "ok")
    assert "appearance" in rest.detail
    assert "without encryption" in wire.detail


def test_servers_that_are_none_are_problems() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        (wire,) = check_server(f"tcp://127.0.0.1:{port}")
    (gone,) = check_server(f"http://127.0.0.1:{port}")
    assert (wire.level, gone.level) == ("problem", "problem")
    assert "does not answer" in gone.detail


@pytest.mark.parametrize("address", ["here", "tcp://127.0.0.1", "ftp://a:1", "tcp://a:99999"])
def test_addresses_of_nothing_we_know_are_wrong_usage(address: str) -> None:
    with pytest.raises(ConfigError, match="expected http://HOST"):
        check_server(address)
