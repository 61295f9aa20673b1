"""The server runs without torch: neither its modules nor its commands import it."""

import subprocess
import sys
from pathlib import Path

BLOCKED = "import sys; sys.modules['torch'] = None; sys.modules['torchvision'] = None; "
IMPORT_ALL = """
import importlib, pkgutil, sys
import keystep_server
for module in pkgutil.walk_packages(keystep_server.__path__, "keystep_server."):
    if "migrations" not in module.name:
        importlib.import_module(module.name)
from keystep_server.storage import Store
Store.open(f"sqlite:///{sys.argv[1]}").close()  # imports the migrations, as alembic wants them
names = [n for n in sys.modules if n.partition(".")[0] in ("torch", "torchvision")]
names += [n for n in sys.modules if n.startswith("keystep_models.training")]
print(len([n for n in sys.modules if n.startswith("keystep_server.")]), names)
"""


def run(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_every_module_of_the_server_imports_no_torch(tmp_path: Path) -> None:
    module_count, names = run(IMPORT_ALL, str(tmp_path / "k.db")).split(maxsplit=1)
    assert int(module_count) > 20
    assert names.strip() == "[]"


def test_serve_command_works_where_torch_cannot_be_imported() -> None:
    code = BLOCKED + "from keystep_capture.cli import main; main()"
    assert "--wire-bind" in run(code, "serve", "--help")
