"""The storm bundles that come with Keystep: they load, fit their detector, and see changes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from keystep_models.onnx_model import ModelManifest
from keystep_models.psr.procedure_document import read_document, to_procedure
from keystep_models.storm.bundle import read_storm_bundle
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
    out = tmp_path / "cart.json"
    done = convert(out, "--detector", "cart", "--storm", "cart", "--name", "cart")
    assert done.returncode == 0, done.stderr
    procedure = to_procedure(read_document(out))
    (cart,) = (path for path in shipped_bundles() if path.parent.name == "cart")
    assert procedure.storm == read_storm_bundle(cart.parent).id
    assert procedure.detector is not None
    assert len(procedure.states) == 31


def test_a_bundle_that_is_none_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "bundle.json").write_text("{}")
    done = convert(tmp_path / "out.json", "--storm", str(tmp_path / "mine"))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "expected a bundle of kind storm" in done.stderr
    assert not (tmp_path / "out.json").exists()
