"""Bundles: written, read, refused when anything is wrong, and made anew with other steps."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keystep_capture.errors import DataError, StateError
from keystep_models.bundles.array_files import parse_arrays, write_arrays
from keystep_models.bundles.bundle import Bundle, read_bundle
from keystep_models.bundles.document import parse_document
from keystep_models.bundles.making import (
    ExpertPart,
    make_bundle,
    merge_steps,
    recompile,
    split_step,
)
from keystep_models.bundles.procedure_of_bundle import ReviewedStep, procedure_of_bundle
from keystep_models.guidance.emissions import EmissionSettings, PartRows
from keystep_models.guidance.filter_settings import FilterSettings
from keystep_models.guidance.step_timing import ExpertSegment
from keystep_models.psr.procedure_document import parse_document as parse_procedure
from keystep_models.psr.procedure_document import to_procedure, write_document

SEGMENTS = [
    ExpertSegment(step_id=step_id, start_tick=start, end_tick=start + 29)
    for step_id, start in ((4, 10), (2, 50), (7, 90))
]


def expert_part(seed: int = 0) -> ExpertPart:
    """130 ticks in which each step has a direction of its own."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(130, 12)).astype(np.float32)
    for place, segment in enumerate(SEGMENTS):
        rows[segment.start_tick : segment.end_tick + 1, place] += 8.0
    part = PartRows(rows=rows, valid=np.ones(130, np.bool_))
    return ExpertPart(cue="appearance", is_encoded=False, rows=part, source={"version": 1})


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "bundle", {"appearance": expert_part()}, SEGMENTS)


def test_a_bundle_is_read_as_it_was_made_and_has_one_id(bundle: Bundle, tmp_path: Path) -> None:
    again = make_bundle(tmp_path / "again", {"appearance": expert_part()}, SEGMENTS)
    assert again.id == bundle.id
    assert {f.name: f.read_bytes() for f in bundle.folder.iterdir()} == {
        f.name: f.read_bytes() for f in again.folder.iterdir()
    }
    assert bundle.timing.step_ids == (4, 2, 7)
    row = expert_part().rows.rows[60]
    evidence = bundle.emissions.evidence({"appearance": row})
    assert evidence is not None
    assert int(evidence.log_likelihoods.argmax()) == 1


def test_another_expert_or_other_steps_make_another_id(bundle: Bundle, tmp_path: Path) -> None:
    other = make_bundle(tmp_path / "b", {"appearance": expert_part(1)}, SEGMENTS)
    fewer = make_bundle(tmp_path / "c", {"appearance": expert_part()}, SEGMENTS[:2])
    assert len({bundle.id, other.id, fewer.id}) == 3


def test_a_bundle_is_never_written_over(bundle: Bundle) -> None:
    with pytest.raises(StateError, match="exists"):
        make_bundle(bundle.folder, {"appearance": expert_part()}, SEGMENTS)


@pytest.mark.parametrize("name", ["prototypes.npz", "expert.npz"])
def test_one_changed_byte_is_refused(bundle: Bundle, name: str) -> None:
    path = bundle.folder / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match="damaged or another version"):
        read_bundle(bundle.folder)


def test_a_missing_file_and_a_link_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    path = bundle.folder / "expert.npz"
    moved = path.rename(tmp_path / "expert.npz")
    with pytest.raises(DataError, match="there is none"):
        read_bundle(bundle.folder)
    path.symlink_to(moved)
    with pytest.raises(DataError, match="there is none"):
        read_bundle(bundle.folder)


def edited(bundle: Bundle, change: Any, *, signed: bool = True) -> bytes:
    """`bundle.json` after a change, with an id that fits where `signed`."""
    content = json.loads((bundle.folder / "bundle.json").read_text())
    change(content)
    if signed:
        document = msgspec.convert(content, type(bundle.document))
        content["id"] = document.content_id()
    return json.dumps(content).encode()


def test_an_edited_document_is_refused(bundle: Bundle) -> None:
    content = edited(bundle, lambda c: c.update(tick_rate_hz=20.0), signed=False)
    with pytest.raises(DataError, match="damaged or edited"):
        parse_document(content, "bundle.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["files"].update({"../x": c["files"]["expert.npz"]}), "cannot be a file"),
        (lambda c: c["files"].pop("expert.npz"), "expected the file expert.npz"),
        (lambda c: c["steps"].reverse(), "in the expert's order"),
        (lambda c: c["steps"][0].update(duration_ticks=1.5), "durations that follow"),
        (lambda c: c["steps"][0].update(segments=[[10, 60]]), "do not overlap"),
        (lambda c: c["parts"].append(c["parts"][0]), "different names"),
        (lambda c: c["parts"][0].update(of="encoder"), "encoders/manifest.json"),
    ],
)
def test_a_document_that_contradicts_itself_is_refused(
    bundle: Bundle, change: Any, message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        parse_document(edited(bundle, change), "bundle.json")
    assert "\n" not in str(caught.value)


def test_steps_beyond_the_recording_are_refused(bundle: Bundle) -> None:
    content = edited(
        bundle, lambda c: c["steps"][2].update(segments=[[90, 130]], duration_ticks=41.0)
    )
    (bundle.folder / "bundle.json").write_bytes(content)
    with pytest.raises(DataError, match="expected ticks below 130"):
        read_bundle(bundle.folder)


def test_another_version_is_told(bundle: Bundle) -> None:
    content = edited(bundle, lambda c: c.update(format_version=2), signed=False)
    with pytest.raises(DataError, match="expected format_version 1, got 2"):
        parse_document(content, "bundle.json")


def test_prototypes_that_are_not_finite_are_refused(bundle: Bundle) -> None:
    path = bundle.folder / "prototypes.npz"
    arrays = {n: a.copy() for n, a in parse_arrays(path.read_bytes(), "x").items()}
    arrays["appearance/centres"][0, 0] = np.nan
    write_arrays(path, arrays)
    entry = {
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "bytes": path.stat().st_size,
    }
    content = edited(bundle, lambda c: c["files"].update({"prototypes.npz": entry}))
    (bundle.folder / "bundle.json").write_bytes(content)
    with pytest.raises(DataError, match="expected finite float64"):
        read_bundle(bundle.folder)


@given(content=st.binary(max_size=300))
def test_any_bytes_give_arrays_or_a_data_error(content: bytes) -> None:
    with contextlib.suppress(DataError):
        parse_arrays(content, "file")


@settings(max_examples=60)
@given(place=st.integers(0, 10_000), value=st.integers(0, 255))
def test_a_changed_byte_in_arrays_gives_arrays_or_a_data_error(
    tmp_path_factory: pytest.TempPathFactory, place: int, value: int
) -> None:
    path = tmp_path_factory.mktemp("arrays") / "a.npz"
    write_arrays(path, {"a/rows": np.ones((3, 2), np.float32), "b": np.arange(4)})
    content = bytearray(path.read_bytes())
    content[place % len(content)] = value
    with contextlib.suppress(DataError):
        assert set(parse_arrays(bytes(content), "file")) != set()


def test_an_array_that_claims_to_be_huge_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    write_arrays(path, {"a": np.zeros((2, 2))})
    content = path.read_bytes().replace(b"(2, 2)", b"(9, 9)")
    with pytest.raises(DataError):
        parse_arrays(content, "file")


def test_merging_and_splitting_recompile_prototypes_without_training(
    bundle: Bundle, tmp_path: Path
) -> None:
    merged = recompile(bundle, merge_steps(bundle.document.segments, [4, 2]), tmp_path / "merged")
    assert merged.timing.step_ids == (4, 7)
    assert merged.timing.duration_ticks == (70.0, 30.0)
    split = recompile(bundle, split_step(bundle.document.segments, 7, 100, 9), tmp_path / "split")
    assert split.timing.step_ids == (4, 2, 7, 9)
    assert len({bundle.id, merged.id, split.id}) == 3
    np.testing.assert_array_equal(split.expert["appearance"].rows, expert_part().rows.rows)
    back = recompile(split, merge_steps(split.document.segments, [7, 9]), tmp_path / "back")
    assert back.id == bundle.id


def test_an_older_bundle_made_anew_of_its_own_steps_is_the_same(tmp_path: Path) -> None:
    """Older ones have no shrinkage by part, and their filter levels nothing."""
    older = make_bundle(
        tmp_path / "older",
        {"appearance": expert_part()},
        SEGMENTS,
        emissions=EmissionSettings(unit_parts=("appearance",), part_shrinkages={}),
        filtering=FilterSettings(level_share=0.0),
    )
    text = (older.folder / "bundle.json").read_text()
    assert not [name for name in ("part_shrinkages", "level_") if name in text]
    assert older.make_filter().settings.level_share == 0
    again = recompile(older, older.document.segments, tmp_path / "again")
    assert again.id == older.id


def test_a_step_between_must_be_merged_too(bundle: Bundle) -> None:
    with pytest.raises(DataError, match="another step lies between"):
        merge_steps(bundle.document.segments, [4, 7])


def test_the_procedure_has_titles_pictures_and_pins_the_bundle(
    bundle: Bundle, tmp_path: Path
) -> None:
    reviewed = {
        4: ReviewedStep(title="Take the frame", picture="pictures/00.jpg"),
        2: ReviewedStep(title="Put in the axle", requires=[4]),
        7: ReviewedStep(title="Put on the wheel", optional=True),
    }
    document = procedure_of_bundle(bundle, reviewed, name="cart", task="assembly")
    path = tmp_path / "cart.json"
    write_document(document, path)
    procedure = to_procedure(parse_procedure(path.read_text(), "cart.json"))
    assert procedure.bundle == bundle.id
    assert [step.title for step in procedure.steps] == [reviewed[i].title for i in (4, 2, 7)]
    assert procedure.step(4).picture == "pictures/00.jpg"
    assert procedure.step(2).requires == (4,)


def test_titles_of_other_steps_and_paths_outside_are_refused(bundle: Bundle) -> None:
    titles = {step_id: ReviewedStep(title="x") for step_id in (4, 2)}
    with pytest.raises(DataError, match="expected titles of the steps"):
        procedure_of_bundle(bundle, titles, name="cart", task="a")
    outside = {**titles, 7: ReviewedStep(title="y", picture="../secret.jpg")}
    with pytest.raises(DataError, match="cannot be a picture's path"):
        procedure_of_bundle(bundle, outside, name="cart", task="a")


def encoders_folder(folder: Path) -> Path:
    """A manifest and the file it names, as an export of encoders writes them."""
    folder.mkdir()
    (folder / "encoders.onnx").write_bytes(b"not loaded here, only compared by hash")
    tensor = {"name": "x", "dtype": "float32", "shape": ["batch", 12]}
    manifest = {
        "name": "encoders",
        "version": "1",
        "file": "encoders.onnx",
        "sha256": hashlib.sha256((folder / "encoders.onnx").read_bytes()).hexdigest(),
        "licence": "Apache-2.0",
        "source": "a test",
        "inputs": [tensor],
        "outputs": [{**tensor, "name": "y"}],
        "preprocessing": {},
        "rate_hz": 10.0,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_encoders_travel_with_the_bundle_and_through_a_recompile(tmp_path: Path) -> None:
    raw = expert_part()
    parts = {"steps": ExpertPart(cue="appearance", is_encoded=True, rows=raw.rows)}
    source = encoders_folder(tmp_path / "export")
    made = make_bundle(tmp_path / "bundle", parts, SEGMENTS, encoders=source)
    again = recompile(made, SEGMENTS[:2], tmp_path / "fewer")
    assert made.encoder_manifest == tmp_path / "bundle/encoders/manifest.json"
    assert again.encoder_manifest is not None
    assert again.encoder_manifest.read_bytes() == (source / "manifest.json").read_bytes()
    (made.folder / "encoders/encoders.onnx").write_bytes(b"swapped")
    with pytest.raises(DataError, match="damaged or another version"):
        read_bundle(made.folder)


def test_encoded_parts_need_encoders_and_nothing_is_left_behind(tmp_path: Path) -> None:
    parts = {"steps": ExpertPart(cue="appearance", is_encoded=True, rows=expert_part().rows)}
    with pytest.raises(DataError, match=r"encoders/manifest\.json"):
        make_bundle(tmp_path / "bundle", parts, SEGMENTS)
    assert list(tmp_path.iterdir()) == []
