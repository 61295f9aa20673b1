"""Cues from ONNX models on pictures: small real models whose answer is known, and unfit ones."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from keystep_capture.errors import ConfigError, DataError, ModelError
from keystep_capture.samples.catalogue import find_sample
from keystep_models.cues.depth_cue import depth_picture
from keystep_models.cues.picture_model import PictureCue, PictureInput
from keystep_models.onnx_model import OnnxModel
from keystep_models.steps.cue_extraction import CueChoice, extract_features
from keystep_models.steps.recording_source import open_recording

COFFEE = find_sample("pour-coffee").video_path
assert COFFEE is not None
H, W = 6, 8


def write_model(
    folder: Path, nodes: list[Any], inputs: dict[str, list[Any]], output: list[Any], **more: Any
) -> Path:
    """A model folder: pixels to the output "vector"; returns its manifest."""
    dtype = more.get("dtype", "uint8")
    kind = TensorProto.UINT8 if dtype == "uint8" else TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info("vector", TensorProto.FLOAT, output)],
    )
    opset = [helper.make_opsetid("", 17)]
    content = helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "m.onnx").write_bytes(content)
    manifest = {
        "name": "test", "version": "1", "file": "m.onnx", "licence": "Apache-2.0",
        "sha256": hashlib.sha256(content).hexdigest(), "source": "made in a test", "rate_hz": 10.0,
        "inputs": [{"name": n, "dtype": dtype, "shape": shape} for n, shape in inputs.items()],
        "outputs": [{"name": "vector", "dtype": "float32", "shape": output}],
        "preprocessing": more.get("preprocessing", {}),
    }  # fmt: skip
    path = folder / "manifest.json"
    path.write_text(json.dumps(manifest))
    return path


def mean_colour(folder: Path) -> Path:
    """The mean of each channel of the whole picture."""
    nodes = [
        helper.make_node("Cast", ["frames"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels"], ["vector"], axes=[1, 2], keepdims=0),
    ]
    return write_model(folder, nodes, {"frames": ["batch", H, W, 3]}, ["batch", 3])


def change(folder: Path, batch: Any = "batch") -> Path:
    """How much each channel's mean grew from one picture to the next: a flow model's kind."""
    nodes = [
        helper.make_node("Sub", ["after", "before"], ["difference"]),
        helper.make_node("ReduceMean", ["difference"], ["vector"], axes=[2, 3], keepdims=0),
    ]
    shape = [batch, 3, H, W]
    told = {"mean": [0, 10, 0], "scale": 2.0, "colour": "bgr"}
    return write_model(
        folder, nodes, {"before": shape, "after": shape}, [batch, 3],
        dtype="float32", preprocessing=told,
    )  # fmt: skip


def plain(red: int, green: int, blue: int) -> av.VideoFrame:
    picture = np.empty((36, 48, 3), np.uint8)
    picture[:] = red, green, blue
    return av.VideoFrame.from_ndarray(picture, format="rgb24")


def rows_of(manifest: Path, pictures: list[av.VideoFrame | None]) -> list[Any]:
    cue = PictureCue(OnnxModel.load(manifest))
    rows = [row for picture in pictures for row in cue.take(picture)]
    return rows + cue.finish()


def test_a_model_on_one_picture_gives_a_row_for_each_and_none_where_there_is_none(
    tmp_path: Path,
) -> None:
    pictures = [None if number % 7 == 3 else plain(number, 20, 30) for number in range(40)]
    rows = rows_of(mean_colour(tmp_path), pictures)
    assert len(rows) == 40
    for number, row in enumerate(rows):
        if number % 7 == 3:
            assert row is None
        else:
            np.testing.assert_allclose(row, (number, 20, 30), atol=1e-4)


@pytest.mark.parametrize("batch", ["batch", 1])
def test_a_model_on_two_pictures_sees_the_one_before_and_forgets_it_over_a_gap(
    tmp_path: Path, batch: Any
) -> None:
    pictures = [plain(10, 20, 30), plain(20, 60, 30), None, plain(9, 9, 9), plain(9, 9, 19)]
    rows = rows_of(change(tmp_path, batch), pictures)
    assert [row is None for row in rows] == [True, False, True, True, False]
    np.testing.assert_allclose(rows[1], (0, 20, 5), atol=1e-4)  # blue, green, red, halved
    np.testing.assert_allclose(rows[4], (5, 0, 0), atol=1e-4)


def test_what_was_remembered_stands_for_a_row_that_is_known_already(tmp_path: Path) -> None:
    cue = PictureCue(OnnxModel.load(change(tmp_path)))
    cue.remember(plain(0, 0, 0))
    [row] = cue.take(plain(8, 8, 8)) + cue.finish()
    np.testing.assert_allclose(row, (4, 4, 4), atol=1e-4)


@pytest.mark.parametrize(
    ("inputs", "output", "more", "message"),
    [
        ({"x": ["batch", H, W, 4]}, ["batch", 3], {}, r"H and W numbers"),
        ({"x": ["batch", "h", W, 3]}, ["batch", 3], {}, r"H and W numbers"),
        ({"x": ["batch", H, W, 3]}, ["batch", "n"], {}, "all but its first dimension"),
        ({"x": [2, H, W, 3]}, [2, 3], {}, "free .a name. or 1"),
        ({"x": ["batch", H, W, 3]}, ["batch", 3], {"dtype": "float32"}, "`mean`"),
        (
            {"x": ["batch", H, W, 3]}, ["batch", 3],
            {"dtype": "float32", "preprocessing": {"mean": 0, "scale": 0}}, "`scale`",
        ),
        ({"x": ["batch", H, W, 3]}, ["batch", 3], {"preprocessing": {"crop": 224}}, "`crop`"),
        ({"x": ["batch", H, W, 3]}, ["batch", 3], {"preprocessing": {"colour": "yuv"}}, "yuv"),
    ],
)  # fmt: skip
def test_a_manifest_that_is_no_pictures_cue_is_refused(
    tmp_path: Path, inputs: Any, output: Any, more: Any, message: str
) -> None:
    path = write_model(tmp_path, [], inputs, output, **more)
    from keystep_models.onnx_model import ModelManifest

    with pytest.raises(ModelError, match=message):
        PictureInput.of(ModelManifest.read(path))


def test_extraction_takes_cues_from_models_of_ones_own(tmp_path: Path) -> None:
    models = {"colour": mean_colour(tmp_path / "c"), "flow": change(tmp_path / "f")}
    choice = CueChoice(cues=("motion",), models=models)
    video = extract_features(open_recording(COFFEE), choice, tmp_path / "out")
    assert video.cues["colour"].features.shape == (96, 3)
    assert video.cues["colour"].valid.all()
    assert np.flatnonzero(~video.cues["flow"].valid).tolist() == [0]
    steps = np.diff(video.cues["colour"].features, axis=0)[:, ::-1] / 2
    np.testing.assert_allclose(video.cues["flow"].features[1:], steps, atol=1e-3)
    assert video.cues["flow"].source["pictures"] == 2


def test_an_appearance_model_of_ones_own_may_have_another_size(tmp_path: Path) -> None:
    choice = CueChoice(cues=("appearance",), appearance_manifest=mean_colour(tmp_path / "m"))
    video = extract_features(open_recording(COFFEE), choice, tmp_path / "out")
    assert video.cues["appearance"].features.shape == (96, 3)
    pair = CueChoice(cues=("appearance",), appearance_manifest=change(tmp_path / "p"))
    with pytest.raises(ModelError, match="--cue-model"):
        extract_features(open_recording(COFFEE), pair, tmp_path / "out")


def test_foreign_and_corrupt_models_leave_no_result(tmp_path: Path) -> None:
    corrupt = mean_colour(tmp_path / "corrupt")
    corrupt.with_name("m.onnx").write_bytes(b"\x08\x09no model")
    foreign = mean_colour(tmp_path / "foreign")
    text = onnx.load(str(foreign.with_name("m.onnx")))
    text.graph.output[0].name = text.graph.node[1].output[0] = "other"
    content = text.SerializeToString()
    foreign.with_name("m.onnx").write_bytes(content)
    told = json.loads(foreign.read_text()) | {"sha256": hashlib.sha256(content).hexdigest()}
    foreign.write_text(json.dumps(told))
    for path, message in (
        (corrupt, "corrupt"),
        (foreign, "the file has"),
        (tmp_path, "found none"),
    ):
        choice = CueChoice(cues=(), models={"mine": path})
        with pytest.raises(ModelError, match=message):
            extract_features(open_recording(COFFEE), choice, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_that_fails_while_it_runs_leaves_no_result(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["frames"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["pixels"], ["vector"]),
    ]
    path = write_model(tmp_path / "m", nodes, {"frames": ["batch", H, W, 3]}, ["batch", 3])
    choice = CueChoice(cues=(), models={"mine": path})
    with pytest.raises(ModelError):
        extract_features(open_recording(COFFEE), choice, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*/video.json"))


def test_names_are_given_once(tmp_path: Path) -> None:
    for more in (
        {"models": {"depth": tmp_path}},
        {"files": {"a": tmp_path}, "models": {"a": tmp_path}},
    ):
        with pytest.raises(ConfigError):
            CueChoice(**more)  # type: ignore[arg-type]


def test_a_cues_folder_holds_a_file_for_each_recording(tmp_path: Path) -> None:
    (tmp_path / "pose").mkdir()
    np.save(tmp_path / "pose" / "pour_coffee.npy", np.ones((96, 34)))
    choice = CueChoice(cues=("motion",), files={"pose": tmp_path / "pose"})
    video = extract_features(open_recording(COFFEE), choice, tmp_path / "out")
    assert video.cues["pose"].size == 34
    (tmp_path / "pose" / "pour_coffee.npy").unlink()
    with pytest.raises(DataError, match=r"pour_coffee\.npy: no such file of cue 'pose'"):
        extract_features(open_recording(COFFEE), choice, tmp_path / "out")


def test_depth_is_bright_when_near_and_its_holes_are_neither_far_nor_edges() -> None:
    depth = np.full((20, 30), 0.5, np.float32)
    depth[:, 15:] = 2.0
    whole = depth_picture(depth)
    assert whole is not None
    pixels = whole.to_ndarray(format="rgb24")
    assert pixels[0, 0, 0] > pixels[0, 29, 0] > 0
    assert (pixels == pixels[..., :1]).all()
    holes = depth.copy()
    holes[3:9, 2:12], holes[12:, 20:] = np.nan, 0.0
    np.testing.assert_array_equal(depth_picture(holes).to_ndarray(format="rgb24"), pixels)  # type: ignore[union-attr]


def test_depth_that_is_mostly_holes_is_missing() -> None:
    depth = np.full((20, 30), np.nan)
    depth[:4] = 1.0
    assert depth_picture(depth) is None
    assert depth_picture(None) is None
    assert depth_picture(np.zeros((0, 4))) is None
