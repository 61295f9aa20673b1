"""`keystep evaluate occlusion|mistakes|baselines` on small recordings, with small ONNX bundles."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
import typer
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner, Result

import keystep_models.detector

pytest.importorskip("matplotlib", reason="drawing needs the [train] extra: make test-training")

from keystep_capture import wire
from keystep_capture.errors import KeystepError
from keystep_capture.recording import RecordingInfo, RecordingWriter
from keystep_capture.simulation.labels import procedure_info
from keystep_capture.simulation.tasks import find_task
from keystep_models.cli import register
from keystep_models.cues.appearance_cue import appearance_manifest_path
from keystep_models.onnx_model import ModelManifest
from keystep_models.psr.procedure_files import load_procedure
from keystep_models.storm.bundle import (
    Accumulation,
    ClipGeometry,
    StormDocument,
    write_storm_bundle,
)

COMPONENTS = len(find_task("cart").components)
DETECTOR = Path(keystep_models.detector.__file__).parent / "cart"
FRAMES = 36
NAMES = ("a", "b", "c")

app = typer.Typer()
register(app)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def write_recording(folder: Path, seed: int) -> None:
    """Noise at 10 Hz in which each completed part has a square of its own grey."""
    writer = RecordingWriter(folder, RecordingInfo(session="ses_1", device="hl2"))
    rng = np.random.default_rng(seed)
    for number in range(FRAMES):
        picture = rng.integers(0, 60, (90, 160, 3)).astype(np.uint8)
        for idx in range(number // 10):
            picture[:, 50 * idx : 50 * idx + 50] += np.uint8(60 + 40 * idx)
        header = wire.PacketHeader(
            protocol=wire.PROTOCOL, session="ses_1", stream="rgb", epoch=1, sequence=number,
            device_time_ns=10**12 + number * 10**8, send_time_ns=10**12 + number * 10**8 + 5,
            encoding="jpeg", width=160, height=90, keyframe=True,
        )  # fmt: skip
        payload = cv2.imencode(".jpg", picture)[1].tobytes()
        writer.write_packet(header, payload, receive_time_ns=header.device_time_ns)
    writer.close()


def write_labels(folder: Path, states: dict[int, dict[int, int]]) -> None:
    rows = []
    for frame, there in states.items():
        values = [str(there.get(idx, 0)) for idx in range(COMPONENTS)]
        rows.append(f"{frame:05d}.jpg,{','.join(values)}")
    (folder / "PSR_labels_raw.csv").write_text("\n".join(rows) + "\n")


def make_set(folder: Path, seed: int) -> Path:
    """Three people: chassis from frame 10, an axle wrongly at 15 in one, rightly from 20."""
    folder.mkdir()
    (folder / "procedure_info.json").write_text(json.dumps(procedure_info(find_task("cart"))))
    for place, name in enumerate(NAMES):
        write_recording(folder / name, seed + place)
        states = {0: {}, 10: {0: 1}, 20: {0: 1, 1: 1}}
        if name == "c":
            states = {0: {}, 10: {0: 1}, 15: {0: 1, 1: -1}, 18: {0: 1}, 20: {0: 1, 1: 1}}
        write_labels(folder / name, states)
    return folder


def write_model(
    folder: Path, name: str, nodes: list[Any], weights: dict[str, Any], tensors: dict[str, Any]
) -> None:
    """An ONNX model of two nodes with its manifest; the last tensor is the output."""
    kinds = {"float32": TensorProto.FLOAT, "bool": TensorProto.BOOL}
    told = [helper.make_tensor_value_info(n, kinds[t], s) for n, (t, s) in tensors.items()]
    constants = [numpy_helper.from_array(value, key) for key, value in weights.items()]
    graph = helper.make_graph(nodes, name, told[:-1], told[-1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    (folder / name).mkdir(parents=True)
    content = model.SerializeToString()
    (folder / name / f"{name}.onnx").write_bytes(content)
    entries = [{"name": n, "dtype": t, "shape": list(s)} for n, (t, s) in tensors.items()]
    manifest = {
        "name": f"storm-{name}", "version": "1", "file": f"{name}.onnx", "licence": "CC0-1.0",
        "sha256": hashlib.sha256(content).hexdigest(), "source": "made by a test",
        "inputs": entries[:-1], "outputs": entries[-1:], "rate_hz": 10.0,
        "preprocessing": {"kind": f"storm-{name}"},
    }  # fmt: skip
    (folder / name / "manifest.json").write_text(json.dumps(manifest))


def write_bundle(folder: Path, procedure: Path, kind: str, seed: int) -> None:
    """Embeddings are 8 random mixtures of the feature, logits of their mean over 5 frames."""
    appearance = ModelManifest.read(appearance_manifest_path())
    rng = np.random.default_rng([seed, len(kind)])

    def write_models(target: Path) -> None:
        mixing = rng.normal(size=(1280, 8)).astype(np.float32)
        nodes = [
            helper.make_node("MatMul", ["appearance", "mixing"], ["mixed"]),
            helper.make_node("LpNormalization", ["mixed"], ["embedding"], axis=1, p=2),
        ]
        tensors: dict[str, Any] = {
            "appearance": ("float32", ("batch", 1280)),
            "embedding": ("float32", ("batch", 8)),
        }
        write_model(target, "spatial", nodes, {"mixing": mixing}, tensors)
        reading = (4 * rng.normal(size=(8, COMPONENTS))).astype(np.float32)
        nodes = [
            helper.make_node("ReduceMean", ["clips"], ["mean"], axes=[1], keepdims=0),
            helper.make_node("MatMul", ["mean", "reading"], ["logits"]),
        ]
        tensors = {
            "clips": ("float32", ("batch", 5, 8)),
            "valid": ("bool", ("batch", 5)),
            "logits": ("float32", ("batch", COMPONENTS)),
        }
        write_model(target, "temporal", nodes, {"reading": reading}, tensors)

    draft = StormDocument(
        format_version=1, kind="storm", id="0" * 64, rate_hz=10.0, input="appearance",
        input_source={"model": appearance.name, "sha256": appearance.sha256}, embedding_size=8,
        component_count=COMPONENTS, clip=ClipGeometry(frames=5, every=2),
        accumulation=Accumulation(threshold=6.0, decay=0.75, window_ticks=9), states=(),
        temporal="gru" if kind == "gru" else "transformer",
        training={"settings": {"temporal": kind, "seed": seed}, "sessions": ["a", "b"]}, files={},
    )  # fmt: skip
    known = load_procedure(str(procedure), "assy")
    write_storm_bundle(folder, known, draft, write_models)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sets `seen` and `hidden`, and a bundle for each of two seeds of two kinds."""
    folder = tmp_path_factory.mktemp("study")
    make_set(folder / "seen", 0)
    make_set(folder / "hidden", 10)
    for kind in ("transformer", "gru"):
        for seed in range(2):
            write_bundle(
                folder / f"{kind}-{seed}" / "bundle",
                folder / "seen" / "procedure_info.json", kind, seed,
            )  # fmt: skip
    return folder


def bundles(data: Path, kind: str = "transformer") -> list[object]:
    return [part for s in (0, 1) for part in ("--bundle", data / f"{kind}-{s}" / "bundle")]


def occlusion(data: Path, out: Path, *more: object) -> Result:
    return call(
        *("evaluate", "occlusion", f"0={data / 'seen'}", f"0.5={data / 'hidden'}"),
        *(*bundles(data), "--detector", DETECTOR, "--out", out, "--cache", data / "cache", *more),
    )


def test_occlusion_ends_in_figures_of_every_method_and_finds_its_work_again(
    data: Path, tmp_path: Path
) -> None:
    first = occlusion(data, tmp_path / "first", "--progress", "json")
    assert first.exit_code == 0, first.output
    stages = {json.loads(x)["stage"] for x in first.stdout.splitlines() if x.startswith("{")}
    assert stages == {"features", "detections", "clips", "methods", "done"}
    assert "Warning: bundles were trained on recordings called a, b" in first.stderr
    document = json.loads((tmp_path / "first" / "occlusion.json").read_text())
    rows = {(row["occlusion"], row["method"]): row for row in document["rows"]}
    bounds = ("shared_true", "soft_true", "shared_silent", "soft_silent")
    methods = ("b3", "b3_low", "temporal", "shared", "soft", "tracker", "tracker_clips", *bounds)
    assert set(rows) == {(rate, method) for rate in (0.0, 0.5) for method in methods}
    assert rows[0.5, "b3"]["f1"]["seed_error"] is None
    assert rows[0.5, "shared"]["f1"]["seed_error"] is not None
    assert document["settings"]["trained_on"] == ["a", "b"]
    assert cv2.imread(str(tmp_path / "first" / "occlusion.png")) is not None
    kept = {path: path.stat().st_mtime_ns for path in (data / "cache").rglob("*.csv")}
    assert len(kept) == 6 * (1 + 2)  # recordings by detector and bundles
    again = occlusion(data, tmp_path / "second", "--progress", "none")
    assert again.exit_code == 0, again.output
    second = (tmp_path / "second" / "occlusion.json").read_bytes()
    assert second == (tmp_path / "first" / "occlusion.json").read_bytes()
    assert kept == {path: path.stat().st_mtime_ns for path in (data / "cache").rglob("*.csv")}


def test_mistakes_are_counted_per_method(data: Path, tmp_path: Path) -> None:
    found = call(
        *("evaluate", "mistakes", data / "seen", *bundles(data), "--detector", DETECTOR),
        *("--out", tmp_path, "--cache", data / "cache", "--progress", "none"),
    )
    assert found.exit_code == 0, found.output
    document = json.loads((tmp_path / "mistakes.json").read_text())
    assert {row["method"]: (row["mistakes"], row["repairs"]) for row in document["rows"]} == {
        **dict.fromkeys(("b3", "b3_low", "tracker"), (1, 1)),
        **dict.fromkeys(("temporal", "shared", "soft", "tracker_clips"), (2, 2)),  # of two seeds
    }
    assert (tmp_path / "mistakes.md").read_text() in found.stdout


def test_baselines_are_compared_seed_by_seed(data: Path, tmp_path: Path) -> None:
    named = [
        part
        for kind in ("transformer", "gru")
        for seed in range(2)
        for part in ("--bundle", f"{kind}={data / f'{kind}-{seed}' / 'bundle'}")
    ]
    found = call(
        *("evaluate", "baselines", data / "seen", *named, "--out", tmp_path),
        *("--cache", data / "cache", "--progress", "none"),
    )
    assert found.exit_code == 0, found.output
    rows = json.loads((tmp_path / "baselines.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["transformer", "gru"]
    assert rows[0]["differences"] == {}
    assert set(rows[1]["differences"]) == {"f1", "pos"}


def test_what_does_not_fit_is_one_line_before_anything_is_looked_at(
    data: Path, tmp_path: Path
) -> None:
    out = ("--out", tmp_path / "out")
    study = (*bundles(data), "--detector", DETECTOR, *out)
    seen, hidden = data / "seen", data / "hidden"
    mixed = [f"--bundle=x={data / 'gru-0' / 'bundle'}", f"--bundle=y={data / 'gru-1' / 'bundle'}"]
    unlike = ("--bundle", data / "gru-0" / "bundle", "--bundle", data / "transformer-1" / "bundle")
    twice = ("--bundle", data / "gru-0" / "bundle") * 2
    other = make_set(tmp_path / "other", 20)
    write_labels(other / "a", {0: {}, 11: {0: 1}})
    lamp = make_set(tmp_path / "lamp", 30)
    (lamp / "procedure_info.json").write_text(json.dumps(procedure_info(find_task("lamp"))))
    for arguments, message in (
        (("occlusion", seen, *study), "its dataset.json tells no rate; write RATE="),
        (("occlusion", f"2={seen}", *study), "expected a rate from 0 to 1"),
        (("occlusion", f"0={seen}", f"0={hidden}", *study), "both have the rate 0"),
        (("occlusion", f"0={seen}", f"1={other}", *study), "a does other things in seen than in"),
        (("occlusion", f"0={tmp_path / 'none'}", *study), "expected a folder of labelled"),
        (("occlusion", f"0={lamp}", *study), "components"),
        (("occlusion", f"0={seen}", *twice, "--detector", DETECTOR, *out), "the same seed, 0"),
        (("occlusion", f"0={seen}", *unlike, "--detector", DETECTOR, *out), "more than their seed"),
        (("occlusion", f"0={seen}", *bundles(data), "--detector", seen, *out), "manifest.json"),
        (("mistakes", seen, hidden, *study), "a is in two data sets"),
        (("baselines", seen, *mixed, *out), "y has the seeds [1], x [0]"),
        (("baselines", seen, mixed[0], *out), "expected bundles of two names or more"),
    ):
        found = call("evaluate", *arguments, "--progress", "none")
        assert isinstance(found.exception, KeystepError), (message, found.output)
        assert message in str(found.exception)
        assert "\n" not in str(found.exception)
    assert not (tmp_path / "out").exists()
