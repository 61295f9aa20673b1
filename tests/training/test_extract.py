"""`keystep extract` and `keystep train steps` from end to end, and what they do with bad input."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import typer
from onnx import TensorProto, helper
from typer.testing import CliRunner

torch = pytest.importorskip("torch", reason="training needs torch: make test-training installs it")

from keystep_capture.errors import ConfigError, DataError, StateError  # noqa: E402
from keystep_capture.folder_lock import locked_folder  # noqa: E402
from keystep_capture.samples.catalogue import find_sample  # noqa: E402
from keystep_models.cli import register  # noqa: E402
from keystep_models.steps.cue_extraction import CueChoice  # noqa: E402
from keystep_models.steps.extraction import frame_clusters, segment_clusters  # noqa: E402
from keystep_models.steps.feature_folder import (  # noqa: E402
    CueFeatures,
    VideoFeatures,
    write_video,
)
from keystep_models.steps.key_step_files import FoundKeySteps  # noqa: E402
from keystep_models.steps.settings import ExtractionSettings, TrainingSettings  # noqa: E402
from keystep_models.training.extract import (  # noqa: E402
    ExtractionPlan,
    extract,
    usable_training,
)
from keystep_models.training.extract_bundle import write_bundle  # noqa: E402

COFFEE = find_sample("pour-coffee").video_path
FAST = ("--epochs", 3, "--chunks", 32, "--threads", 1)

app = typer.Typer()
register(app)


def keystep(*args: object) -> str:
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    if result.exception is not None:
        raise result.exception
    return result.output


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    out = tmp_path_factory.mktemp("extract")
    printed = keystep("extract", COFFEE, "--out", out, *FAST, "--progress", "json")
    return out, [json.loads(line) for line in printed.splitlines()]


def test_a_real_video_becomes_key_steps_with_pictures_and_provenance(made: Any) -> None:
    out, _ = made
    folder = out / "pour_coffee"
    document = json.loads((folder / "key_steps.json").read_text())
    assert document["key_steps"]
    for step in document["key_steps"]:
        assert 0 <= step["start_s"] <= step["exemplar_s"] <= step["end_s"] <= 9.6
        assert cv2.imread(str(folder / step["picture"])).shape == (720, 1280, 3)
    assert cv2.imread(str(folder / "contact_sheet.jpg")) is not None
    provenance = document["provenance"]
    assert provenance["training"]["epochs"] == 3
    assert set(provenance["cues"]) == {"appearance", "motion"}
    assert len(provenance["model_sha256"]) == 64


def test_progress_is_a_json_line_per_event_and_ends_with_the_result(made: Any) -> None:
    _, events = made
    stages = [event["stage"] for event in events]
    assert list(dict.fromkeys(stages)) == ["features", "training", "key_steps", "done"]
    assert [e["done"] for e in events if e["stage"] == "training"] == [1, 2, 3]
    assert events[-1]["recordings"]["pour_coffee"]["key_steps"] > 0


def test_the_window_is_narrowed_for_a_short_recording_and_that_is_told(made: Any) -> None:
    _, events = made
    narrowed, lacking, instead = events[-1]["recordings"]["pour_coffee"]["notes"]
    assert "cue gaze_appearance is missing everywhere" in lacking
    assert "the window of 10 s was narrowed to 1.189 s" in narrowed
    assert "looks at appearance instead of gaze_appearance: the recording has no gaze" in instead


def test_the_same_call_again_gives_the_same_key_steps_without_training(made: Any) -> None:
    out, _ = made
    before = (out / "pour_coffee" / "key_steps.json").read_bytes()
    printed = keystep("extract", COFFEE, "--out", out, *FAST, "--progress", "json")
    assert (out / "pour_coffee" / "key_steps.json").read_bytes() == before
    assert not [e for e in map(json.loads, printed.splitlines()) if e["stage"] == "training"]


@pytest.mark.parametrize(
    "more",
    [
        ("--clustering", "finch", "-k", "auto"),
        ("-k", 500),
        ("--sampling", "ils", "--budget", 0.3),
        ("--top-n", 2, "--inference-cues", "appearance", "--alpha", 0),
    ],
)
def test_other_choices_use_what_was_trained(made: Any, more: tuple[Any, ...]) -> None:
    out, _ = made
    printed = keystep("extract", COFFEE, "--out", out, *FAST, *more, "--progress", "json")
    events = [json.loads(line) for line in printed.splitlines()]
    assert not [event for event in events if event["stage"] == "training"]
    count = events[-1]["recordings"]["pour_coffee"]["key_steps"]
    assert len(list((out / "pour_coffee" / "key_steps").glob("*.jpg"))) == count
    if "--top-n" in more:
        assert count == 2


def sensors_only(
    name: str, *, seconds: int = 60, cues: tuple[str, ...] = ("head",)
) -> VideoFeatures:
    """A simulated recording without pictures."""
    count = 10 * seconds
    rng = np.random.default_rng(3)
    looks = rng.normal(size=(4, 15))[np.arange(count) * 4 // count]
    rows = (looks + 0.3 * rng.normal(size=(count, 15))).astype("f4")
    return VideoFeatures(
        name=name,
        rate_hz=10.0,
        times_ns=np.arange(count, dtype=np.int64) * 100_000_000,
        cues={cue: CueFeatures(features=rows, valid=np.ones(count, bool)) for cue in cues},
    )


def with_cue(video: VideoFeatures, gaze: CueFeatures) -> VideoFeatures:
    return VideoFeatures(
        name=video.name, rate_hz=10.0, times_ns=video.times_ns, cues={**video.cues, "gaze": gaze}
    )


class Sensors:
    """A recording without pictures, as it would be read."""

    warnings = ("the recording was not closed",)
    identity = {"kind": "simulated"}  # noqa: RUF012

    def __init__(self, name: str) -> None:
        self.name = name

    def moments(self, rate_hz: float) -> Any:
        from keystep_models.steps.recording_source import Moment

        for index in range(300):
            pose = np.eye(4)
            pose[:3, 3] = (index // 75, 0.01 * (index % 7), 0)
            yield Moment(
                epoch=1, device_time_ns=index * 10**8, picture=None, samples={"head": pose}
            )

    def pictures(self, wanted: Any) -> Any:
        return iter(())


def test_a_recording_without_pictures_gives_key_steps_of_its_sensors(tmp_path: Path) -> None:
    plan = ExtractionPlan(
        cues=CueChoice(cues=("motion", "head")),
        training=TrainingSettings(cues=("motion", "head"), epochs=2, chunk_count=64),
        extraction=ExtractionSettings(),
        out=tmp_path,
    )
    results = extract([Sensors("one"), Sensors("two")], plan, lambda event: None)
    assert results["one"]["key_steps"] > 0
    notes = " / ".join(results["one"]["notes"])
    assert "cue motion is in no recording and was not trained on" in notes
    assert "key steps have no picture" in notes
    assert "the recording was not closed" in notes
    document = json.loads((tmp_path / "two" / "key_steps.json").read_text())
    assert {step["picture"] for step in document["key_steps"]} == {None}


def looked_at(gaze_ticks: int) -> VideoFeatures:
    """Sixty simulated ticks with the whole picture, and what is around the gaze in the first."""
    rng = np.random.default_rng(0)
    valid = np.arange(60) < gaze_ticks
    cues = {
        "appearance": CueFeatures(
            features=rng.normal(size=(60, 8)).astype(np.float32), valid=np.ones(60, np.bool_)
        ),
        "gaze_appearance": CueFeatures(
            features=rng.normal(size=(60, 8)).astype(np.float32), valid=valid
        ),
    }
    times = np.arange(60, dtype=np.int64) * 10**8
    return VideoFeatures(name="one", rate_hz=10.0, times_ns=times, cues=cues)


def test_a_bundle_looks_at_the_gaze_point_where_the_expert_had_gaze(tmp_path: Path) -> None:
    times_s = np.arange(60) / 10
    labels = np.repeat([0, 1, 2], 20)
    clusters = frame_clusters(looked_at(60).cues["appearance"].features, labels)
    found = FoundKeySteps(
        segments=segment_clusters(clusters, times_s), frames=np.arange(60), clusters=clusters
    )
    bundle = write_bundle(tmp_path / "gaze", looked_at(60), found)
    assert [part.cue for part in bundle.document.parts] == ["gaze_appearance", "appearance"]
    assert bundle.emission_settings.stand_ins == {"appearance": "gaze_appearance"}
    other = write_bundle(tmp_path / "none", looked_at(25), found)
    [part] = other.document.parts
    assert (part.cue, part.source["instead_of"]) == ("appearance", "gaze_appearance")
    assert "of the steps' time only" in part.source["because"]


def test_two_extractions_into_one_folder_do_not_mix(tmp_path: Path) -> None:
    command = ["extract", str(find_sample("pour-coffee").video_path), "--out", str(tmp_path)]
    run = f"import sys; sys.argv[1:] = {command!r}; from keystep_capture.cli import main; main()"
    with locked_folder(tmp_path):  # as the other process holds it
        done = subprocess.run([sys.executable, "-c", run], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("keystep: another process writes into")
    assert not (tmp_path / "features").exists()


def test_two_trainings_into_one_folder_do_not_mix(tmp_path: Path) -> None:
    write_video(tmp_path / "features", sensors_only("one", seconds=12, cues=("appearance",)))
    train = ("train", "steps", "--features", tmp_path / "features", "--out", tmp_path / "run")
    with locked_folder(tmp_path / "run"), pytest.raises(StateError, match="another process"):
        keystep(*train, "--cues", "appearance", *FAST)
    assert not (tmp_path / "run" / "settings.json").exists()


def test_results_are_not_put_where_a_file_is(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ConfigError, match="is a file"):
        keystep("extract", COFFEE, "--out", tmp_path / "out", *FAST)
    assert (tmp_path / "out").read_text() == "mine"


def test_recordings_need_different_names(tmp_path: Path) -> None:
    plan = ExtractionPlan(
        cues=CueChoice(), training=TrainingSettings(), extraction=ExtractionSettings(), out=tmp_path
    )
    with pytest.raises(ConfigError, match="different names"):
        extract([Sensors("one"), Sensors("one")], plan, lambda event: None)


def test_no_usable_cue_is_an_error_and_a_needed_one_too() -> None:
    video = sensors_only("a")
    with pytest.raises(DataError, match="there are head: choose with --cues"):
        usable_training([video], TrainingSettings())
    chosen = TrainingSettings(cues=("head", "motion"), bootstrap=("motion",))
    with pytest.raises(DataError, match="no recording has cue 'motion'"):
        usable_training([video], chosen)


def test_train_steps_and_evaluate_work_on_a_feature_folder(tmp_path: Path) -> None:
    for seed in range(2):
        video = sensors_only(f"v{seed}", seconds=12, cues=("appearance", "motion"))
        labels = np.arange(video.frame_count) * 4 // video.frame_count + 1
        object.__setattr__(video, "labels", labels)
        write_video(tmp_path / "features", video)
    runs = []
    for seed in (0, 1):
        run = tmp_path / f"run{seed}"
        keystep(
            *("train", "steps", "--features", tmp_path / "features", "--out", run),
            *(*FAST, "--seed", seed, "--sigma", 1, "--progress", "none"),
        )
        runs += ["--model", run]
    out = tmp_path / "ksl.json"
    keystep("evaluate", "ksl", "--features", tmp_path / "features", *runs, "--json", out, "-k", 4)
    rows = {row["name"]: row for row in json.loads(out.read_text())["rows"]}
    assert rows["STEPs"]["runs"] == 2
    assert rows["STEPs"]["values"]["f1"] > rows["random"]["values"]["f1"]
    curves = json.loads((tmp_path / "run0" / "curves.json").read_text())
    assert [each["epoch"] for each in curves] == [0, 1, 2]
    gaze = CueFeatures(features=np.ones((120, 2), "f4"), valid=np.ones(120, bool))
    for seed in range(2):
        write_video(tmp_path / "more", with_cue(sensors_only(f"v{seed}", seconds=12), gaze))
    with pytest.raises(DataError, match="was not trained on cue 'gaze'"):
        keystep("evaluate", "tau", "--features", tmp_path / "more", *runs, "--cues", "gaze")


def write_mean_colour(folder: Path) -> Path:
    """A model on one picture, made here: the mean of each channel."""
    nodes = [
        helper.make_node("Cast", ["frames"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels"], ["vector"], axes=[1, 2], keepdims=0),
    ]
    shapes: dict[str, list[Any]] = {"frames": ["batch", 6, 8, 3], "vector": ["batch", 3]}
    frames, vector = (
        helper.make_tensor_value_info(name, kind, shapes[name])
        for name, kind in (("frames", TensorProto.UINT8), ("vector", TensorProto.FLOAT))
    )
    graph = helper.make_graph(nodes, "test", [frames], [vector])
    opset = [helper.make_opsetid("", 17)]
    content = helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString()
    (folder / "m.onnx").write_bytes(content)
    manifest = {
        "name": "colour", "version": "1", "file": "m.onnx", "licence": "Apache-2.0",
        "sha256": hashlib.sha256(content).hexdigest(), "source": "a test", "rate_hz": 10.0,
        "inputs": [{"name": "frames", "dtype": "uint8", "shape": shapes["frames"]}],
        "outputs": [{"name": "vector", "dtype": "float32", "shape": shapes["vector"]}],
        "preprocessing": {},
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder / "manifest.json"


def test_cues_of_ones_own_and_alignment_go_the_whole_way(tmp_path: Path) -> None:
    (tmp_path / "poses").mkdir()
    np.save(tmp_path / "poses" / "pour_coffee.npy", np.random.default_rng(0).random((96, 34)))
    keystep(
        *("extract", COFFEE, "--out", tmp_path / "out", *FAST, "--progress", "none"),
        *("--cues", "motion,colour,pose", "--soft-dtw", 0.5),
        *("--cue-model", f"colour={write_mean_colour(tmp_path)}"),
        *("--cue-file", f"pose={tmp_path / 'poses'}"),
    )
    document = json.loads((tmp_path / "out" / "pour_coffee" / "key_steps.json").read_text())
    assert document["key_steps"]
    assert set(document["provenance"]["cues"]) == {"motion", "colour", "pose"}
    assert document["provenance"]["training"]["soft_dtw"] == 0.5


def test_a_bundle_of_the_key_steps_is_made_and_told(made: Any) -> None:
    from keystep_models.bundles.bundle import read_bundle

    out, events = made
    assert len(events[-1]["recordings"]["pour_coffee"]["bundle"]) == 64
    bundle = read_bundle(out / "pour_coffee" / "bundle")  # of the newest call
    told = json.loads((out / "extraction.json").read_text())["recordings"]["pour_coffee"]
    assert told["bundle"] == bundle.id
    assert len(bundle.timing.step_ids) == told["key_steps"]
    assert [(part.name, part.of) for part in bundle.document.parts] == [("appearance", "raw")]
    assert len(bundle.document.parts[0].source["sha256"]) == 64


def test_a_bundle_with_encoders_of_its_own_follows_the_recording(tmp_path: Path) -> None:
    from keystep_models.bundles.bundle import read_bundle
    from keystep_models.bundles.procedure_of_bundle import ReviewedStep, procedure_of_bundle
    from keystep_models.guidance.bundle_recogniser import BundleRecogniser
    from keystep_models.incremental.encoders import IncrementalEncoders
    from keystep_models.incremental.session_slot import SessionSlot
    from keystep_models.psr.procedure_document import to_procedure
    from keystep_models.psr.recogniser import CueTick
    from keystep_models.steps.feature_folder import read_video

    args = ("extract", COFFEE, "--out", tmp_path, *FAST, "--clusters", 2, "--min-duration", 1.5)
    keystep(*args, "--bundle-encoders", "--progress", "none")
    bundle = read_bundle(tmp_path / "pour_coffee" / "bundle")
    assert {part.of for part in bundle.document.parts} == {"raw", "encoder"}
    reviewed = {each: ReviewedStep(title=f"Step {each}") for each in bundle.timing.step_ids}
    document = procedure_of_bundle(bundle, reviewed, name="coffee", task="coffee")
    assert bundle.encoder_manifest is not None
    slot = SessionSlot(IncrementalEncoders.load(bundle.encoder_manifest, slot_count=1))
    recogniser = BundleRecogniser(to_procedure(document), bundle, slot)
    video = read_video(tmp_path / "features" / "pour_coffee")
    for tick in range(video.frame_count):
        rows = {c: f.features[tick] if f.valid[tick] else None for c, f in video.cues.items()}
        recogniser.step_tick(CueTick(index=tick, rows=rows))
    assert recogniser.can_see
    recogniser.close()


def test_no_bundle_is_made_where_none_is_wanted(made: Any, tmp_path: Path) -> None:
    keystep("extract", COFFEE, "--out", tmp_path, *FAST, "--no-bundle", "--progress", "none")
    assert not (tmp_path / "pour_coffee" / "bundle").exists()
    with pytest.raises(ConfigError, match="no-bundle"):
        keystep("extract", COFFEE, "--out", tmp_path, "--no-bundle", "--bundle-encoders")
