"""The storm bundles that come with Keystep: they load, fit their detector, and see changes."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from keystep_capture.errors import DataError
from keystep_models.onnx_model import ModelManifest
from keystep_models.psr.procedure_document import read_document, to_procedure
from keystep_models.storm.bundle import StormDocument, read_storm_bundle
from keystep_models.storm.clip_model import ClipModel
from keystep_models.storm.clip_window import ClipWindow
from keystep_models.storm.shipped import shipped_bundles


def convert(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    document = next(path for path in shipped_bundles() if path.parent.name == "cart")
    command = [sys.executable, "-m", "keystep_capture.cli", "procedure", "convert"]
    return subprocess.run(
        [*command, str(document.with_name("procedure.json")), *options, "--out", str(out)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.mark.parametrize("path", shipped_bundles(), ids=lambda path: path.parent.name)
def test_a_shipped_bundle_says_whose_and_what_it_is_and_runs(path: Path) -> None:
    bundle = read_storm_bundle(path.parent)
    assert bundle.document.training["simulated"] is True
    assert (path.parent / "LICENCE.md").is_file()
    for manifest in (bundle.spatial_manifest, bundle.temporal_manifest):
        assert ModelManifest.read(manifest).licence == "Apache-2.0"
    model = ClipModel.load(bundle)
    features = np.random.default_rng(0).normal(size=(3, 1280)).astype(np.float32)
    document = bundle.document
    windows = [ClipWindow(document.clip, document.embedding_size) for _ in range(6)]
    rows = [model.new_row(model.open_window(window)) for window in windows]
    for number, row in enumerate(rows):
        model.fill(row, 0, features[number % 3])
    seen = model.run(np.concatenate(rows[:3]))
    one_by_one = np.concatenate([model.run(row) for row in rows[3:]])
    np.testing.assert_allclose(seen, one_by_one, atol=1e-4, rtol=0)


def test_a_procedure_pins_the_shipped_detector_and_bundle_by_name(tmp_path: Path) -> None:
    out = tmp_path / "procedures" / "cart.json"  # made by it, as a server's first run may be later
    done = convert(out, "--detector", "cart", "--storm", "cart", "--name", "cart")
    assert done.returncode == 0, done.stderr
    procedure = to_procedure(read_document(out))
    (cart,) = (path for path in shipped_bundles() if path.parent.name == "cart")
    assert procedure.storm == read_storm_bundle(cart.parent).id
    assert procedure.detector is not None
    assert len(procedure.states) == 31


def edited_and_sealed(folder: Path, name: str, old: str, new: str) -> Path:
    """A copy of a shipped bundle with one place edited, whose hashes are right all the same."""
    (cart,) = (path for path in shipped_bundles() if path.parent.name == "cart")
    shutil.copytree(cart.parent, folder)
    content = (folder / name).read_bytes().replace(b" ", b"").replace(b"\n", b"")
    assert old.encode() in content
    (folder / name).write_bytes(content.replace(old.encode(), new.encode("latin-1")))
    if name != "bundle.json":
        document = json.loads((folder / "bundle.json").read_text())
        content = (folder / name).read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        document["files"][name] = {"sha256": sha256, "bytes": len(content)}
        sealed = msgspec.convert(document, StormDocument)
        sealed = msgspec.structs.replace(sealed, id=sealed.content_id())
        (folder / "bundle.json").write_bytes(msgspec.json.encode(sealed))
    return folder


@pytest.mark.parametrize(
    ("name", "old", "new", "words"),
    [
        ("temporal/manifest.json", '"logits"', '"scores"', "'logits', .* got .*'scores'"),
        ("temporal/manifest.json", '"bool"', '"float32"', "'valid', 'bool'"),
        ("spatial/manifest.json", '["batch",1280]', '["batch","any"]', "got .*'any'"),
        ("spatial/manifest.json", '["batch",1280]', '["batch",3,2]', r"got .*'batch', 3, 2"),
        ("procedure.json", "chassis", "ch\xe4ssis", "procedure.json: .*expected UTF-8 text"),
        ("bundle.json", '"rate_hz":10.0', '"rate_hz":1e-300', "rate_hz"),
    ],
)
def test_a_bundle_that_was_edited_and_sealed_is_refused(
    tmp_path: Path, name: str, old: str, new: str, words: str
) -> None:
    folder = edited_and_sealed(tmp_path / "mine", name, old, new)
    with pytest.raises(DataError, match=words) as raised:
        read_storm_bundle(folder)
    assert "\n" not in str(raised.value)


def test_a_bundle_that_is_none_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "bundle.json").write_text("{}")
    done = convert(tmp_path / "out.json", "--storm", str(tmp_path / "mine"))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "expected a bundle of kind storm" in done.stderr
    assert not (tmp_path / "out.json").exists()
