import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection, create_engine

from keystep_capture.errors import ConfigError, DataError, NotFoundError, StateError
from keystep_server.sessions import new_session_id
from keystep_server.storage import (
    Branch,
    EpochSpan,
    EventRetraction,
    Job,
    JobState,
    KeyStep,
    KeyStepSource,
    KeyStepStatus,
    NewRevision,
    RevisionOrigin,
    Session,
    SessionKind,
    SessionState,
    StepEvent,
    StepEventKind,
    Store,
    key_step_id,
    step_event_id,
)
from keystep_server.storage.engine import MIGRATIONS
from keystep_server.storage.tables import Base

NOW = datetime(2026, 3, 2, 9, 15, 0, 120000, tzinfo=UTC)
Events = Callable[..., StepEvent]


def session(device_id: str = "hololens-07", at: datetime = NOW) -> Session:
    return Session(
        id=new_session_id(at),
        device_id=device_id,
        kind=SessionKind.GUIDED,
        state=SessionState.OPEN,
        task="bike",
        procedure=None,
        replay=False,
        time_scale=1.0,
        created_at=at,
    )


def key_step(session_id: str, position: int, source: KeyStepSource) -> KeyStep:
    return KeyStep(
        id=key_step_id(session_id, source, position),
        session_id=session_id,
        position=position,
        title=f"Key step {position}",
        status=KeyStepStatus.PROPOSED,
        source=source,
        start_device_time_ns=2**62,
        start_s=1.5,
        exemplar_path="exemplars/1.jpg",
        exemplar_size=(640, 360),
        provenance={"method": "steps"},
    )


def test_everything_is_there_after_a_restart(tmp_path: Path, make_event: Events) -> None:
    url = f"sqlite:///{tmp_path / 'deep' / 'keystep.db'}"
    first = Store.open(url)
    opened = first.add_session(session())
    epoch = first.begin_epoch(opened.id)
    stored, _ = first.append_event(opened.id, make_event(1))
    steps = [key_step(opened.id, n, KeyStepSource.PROCEDURE) for n in range(3)]
    first.replace_progress(opened.id, steps)
    first.close()

    second = Store.open(url)
    assert second.session(opened.id) == replace(opened, epoch=epoch)
    assert second.current_session(opened.device_id) == replace(opened, epoch=1)
    assert second.events(opened.id) == [stored]
    assert second.progress(opened.id) == steps
    assert [device.id for device in second.devices()] == [opened.device_id]
    second.close()


def test_migrations_make_exactly_the_tables_the_code_expects(store: Store, tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'keystep.db'}")
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
    engine.dispose()


def test_sqlite_runs_with_wal_and_foreign_keys(store: Store, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "keystep.db") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()
    orphan = key_step("ses_none", 0, KeyStepSource.PROCEDURE)
    with pytest.raises(NotFoundError):
        store.replace_progress("ses_none", [orphan])


def test_a_database_that_is_none_says_so(tmp_path: Path) -> None:
    (tmp_path / "keystep.db").write_bytes(b"not a database" * 100)
    with pytest.raises(DataError, match="cannot be opened"):
        Store.open(f"sqlite:///{tmp_path / 'keystep.db'}")
    with pytest.raises(ConfigError, match="driver"):
        Store.open("nonesuch://host/db")


def test_times_come_back_as_utc_whatever_zone_they_went_in(store: Store) -> None:
    at = NOW.astimezone(timezone(timedelta(hours=9)))
    device = store.touch_device("d", at, "client 1")
    assert device.first_seen_at == store.devices()[0].first_seen_at == NOW
    assert store.devices()[0].first_seen_at.utcoffset() == timedelta(0)


def test_touching_a_device_keeps_its_first_time_and_client(store: Store) -> None:
    store.touch_device("d", NOW, "client 1")
    store.touch_device("d", NOW + timedelta(hours=1))
    (device,) = store.devices()
    assert (device.first_seen_at, device.client) == (NOW, "client 1")
    assert device.last_seen_at == NOW + timedelta(hours=1)


def test_second_session_of_a_device_is_refused_until_the_first_is_closed(store: Store) -> None:
    first = store.add_session(session())
    store.set_paused(first.id, True)
    with pytest.raises(StateError, match=first.id):
        store.add_session(session())
    store.close_session(first.id, NOW, "done")
    assert store.add_session(session()).state is SessionState.OPEN


def test_closing_twice_keeps_the_first_reason(store: Store) -> None:
    opened = store.add_session(session())
    store.close_session(opened.id, NOW, "first", "broken pipe")
    again = store.close_session(opened.id, NOW + timedelta(hours=1), "second")
    assert (again.closed_at, again.close_reason, again.error) == (NOW, "first", "broken pipe")


def test_sessions_are_listed_newest_first_by_pages_and_filters(store: Store) -> None:
    made = [store.add_session(session(f"d{n}", NOW + timedelta(seconds=n))).id for n in range(5)]
    store.close_session(made[1], NOW, "done")
    newest = [s.id for s in store.sessions(limit=2)]
    assert newest == [made[4], made[3]]
    assert [s.id for s in store.sessions(beyond=newest[-1])] == [made[2], made[1], made[0]]
    assert [s.id for s in store.sessions(state=SessionState.CLOSED)] == [made[1]]
    assert [s.id for s in store.sessions(device_id="d2")] == [made[2]]
    assert store.unclosed_session_count() == 4


def test_the_same_event_is_stored_once(store: Store, make_event: Events) -> None:
    opened = store.add_session(session())
    first, is_new = store.append_event(opened.id, make_event(1))
    second, is_new_again = store.append_event(opened.id, make_event(1, confidence=0.9))
    assert (is_new, is_new_again) == (True, False)
    assert first == second
    assert first.device_time_ns == 2**60 + 1


def test_events_of_concurrent_writers_get_ordinals_without_holes(
    store: Store, make_event: Events
) -> None:
    opened = store.add_session(session())
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: store.append_event(opened.id, make_event(n)), range(40)))
    assert [event.ordinal for event in store.events(opened.id)] == list(range(1, 41))
    assert [event.ordinal for event in store.events(opened.id, after=37)] == [38, 39, 40]


def test_retracted_event_moves_to_the_end_and_keeps_its_id(
    store: Store, make_event: Events
) -> None:
    opened = store.add_session(session())
    first, _ = store.append_event(opened.id, make_event(1))
    store.append_event(opened.id, make_event(2))
    why = EventRetraction(at=NOW, by="tracker", evidence={"confidence": 0.9})
    gone, changed = store.retract_event(first.id, why)
    assert changed
    assert gone == replace(
        first,
        ordinal=3,
        retracted=True,
        retracted_at=NOW,
        retracted_by="tracker",
        retraction_evidence={"confidence": 0.9},
    )
    again = EventRetraction(at=NOW + timedelta(seconds=1), by="another")
    assert store.retract_event(first.id, again) == (gone, False)
    assert store.append_event(opened.id, make_event(1)) == (gone, False)  # as a restart finds it
    assert [event.ordinal for event in store.events(opened.id)] == [2, 3]


def test_retraction_that_cannot_be_written_changes_nothing(
    store: Store, make_event: Events
) -> None:
    opened = store.add_session(session())
    event, _ = store.append_event(opened.id, make_event(1))
    with pytest.raises(DataError, match="evidence"):
        store.retract_event(event.id, EventRetraction(at=NOW, by="x", evidence={"c": float("nan")}))
    assert store.events(opened.id) == [event]


def upgraded_from(tmp_path: Path, revision: str, fill: Callable[[Connection], None]) -> Store:
    url = f"sqlite:///{tmp_path / 'old.db'}"
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    engine = create_engine(url)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
        connection.exec_driver_sql("INSERT INTO devices VALUES ('d', ?, ?, NULL)", (NOW, NOW))
        fill(connection)
    engine.dispose()
    return Store.open(url)


def test_sessions_from_before_there_were_methods_ran_b3(tmp_path: Path) -> None:
    def fill(connection: Connection) -> None:
        row = "(id, device_id, kind, state, procedure, replay, time_scale, created_at, epoch)"
        for name, procedure in (("ses_a", "industreal-assy"), ("ses_b", None)):
            connection.exec_driver_sql(
                f"INSERT INTO sessions {row} VALUES (?, 'd', 'guided', 'closed', ?, 0, 1.0, ?, 1)",
                (name, procedure, NOW),
            )

    store = upgraded_from(tmp_path, "0001", fill)
    assert [store.session(name).method for name in ("ses_a", "ses_b")] == ["b3", None]
    store.close()


def test_key_steps_extracted_before_there_were_revisions_are_the_first(tmp_path: Path) -> None:
    def fill(connection: Connection) -> None:
        connection.exec_driver_sql(
            "INSERT INTO sessions (id, device_id, kind, state, replay, time_scale, created_at,"
            " epoch) VALUES ('ses_a', 'd', 'expert', 'closed', 0, 1.0, ?, 1)",
            (NOW,),
        )
        for name, source, position in (
            ("e1", "extracted", 1),
            ("e0", "extracted", 0),
            ("p", "procedure", 0),
        ):
            connection.exec_driver_sql(
                "INSERT INTO key_steps (id, session_id, position, title, status, source, start_s,"
                " exemplar_path, exemplar_width, exemplar_height, provenance)"
                " VALUES (?, 'ses_a', ?, ?, 'proposed', ?, 1.5, 'a.jpg', 640, 360, ?)",
                (name, position, f"Title {name}", source, '{"method": "x"}'),
            )

    store = upgraded_from(tmp_path, "0003", fill)
    first = store.revisions.get("ses_a")
    assert (first.number, first.origin, first.parent, first.timeline) == (1, "closing", None, ())
    assert [(s.id, s.position, s.start_s) for s in first.key_steps] == [
        ("e0", 0, 1.5),
        ("e1", 1, 1.5),
    ]
    assert first.key_steps[0].provenance == {"method": "x"}
    assert first.key_steps[0].exemplar_size == (640, 360)
    assert [step.id for step in store.progress("ses_a")] == ["p"]
    store.close()


def new_revision(session_id: str, *titles: str, **changes: Any) -> NewRevision:
    source = KeyStepSource.EXTRACTED
    steps = [replace(key_step(session_id, n, source), title=t) for n, t in enumerate(titles)]
    return NewRevision(**{"origin": RevisionOrigin.CLOSING, "key_steps": tuple(steps), **changes})


def test_revisions_are_kept_one_after_another(store: Store) -> None:
    one = store.add_session(session()).id
    assert store.revisions.find(one) is None
    span = EpochSpan(epoch=1, start_s=0.0, end_s=9.5, device_time_ns=2**61)
    job = {"job_id": "job_a", "origin": RevisionOrigin.EXTRACTION, "timeline": (span,)}
    first = store.revisions.add(one, new_revision(one, "a", "b"), NOW)
    second = store.revisions.add(one, new_revision(one, "c", **job), NOW)
    assert first is not None
    assert second is not None
    assert (first.number, first.parent, second.number, second.parent) == (1, None, 2, 1)
    assert store.revisions.get(one, 1) == first
    assert store.revisions.get(one) == second
    assert second.timeline == (span,)
    # A job that is finished once more, after a restart, makes no second one.
    assert store.revisions.add(one, new_revision(one, "c", **job), NOW) == second
    assert [found.number for found in store.revisions.all(one)] == [1, 2]
    with pytest.raises(NotFoundError, match="revision 3"):
        store.revisions.get(one, 3)


def test_of_concurrent_edits_of_one_revision_one_is_stored(store: Store) -> None:
    one = store.add_session(session()).id
    store.revisions.add(one, new_revision(one, "a"), NOW)

    def edit(number: int) -> bool:
        made = new_revision(one, f"by {number}")
        return store.revisions.add(one, made, NOW, only_after=1) is not None

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(edit, range(8))) == [False] * 7 + [True]
    assert [found.number for found in store.revisions.all(one)] == [1, 2]


def test_revisions_refuse_what_is_not_the_sessions(store: Store) -> None:
    one = store.add_session(session()).id
    wrong = key_step(one, 0, KeyStepSource.PROCEDURE)
    twice = key_step(one, 0, KeyStepSource.EXTRACTED)
    for steps, message in (
        ([wrong], "extracted"),
        ([twice, replace(twice, position=1)], "twice"),
        ([replace(twice, position=1)], "positions"),
        ([replace(twice, id=str(n), position=n) for n in range(501)], "at most 500"),
    ):
        with pytest.raises(DataError, match=message):
            store.revisions.add(one, new_revision(one, key_steps=tuple(steps)), NOW)
    with pytest.raises(NotFoundError):
        store.revisions.add("ses_none", new_revision("ses_none", "a"), NOW)


def job(session_id: str, number: int = 0, **changes: Any) -> Job:
    values: dict[str, Any] = {
        "id": f"job_{number:026d}",
        "session_id": session_id,
        "recordings": (session_id,),
        "options": {"preset": "small"},
        "state": JobState.QUEUED,
        "created_at": NOW,
    }
    return Job(**{**values, **changes})


def test_a_session_has_one_unfinished_job_and_a_server_so_many(store: Store) -> None:
    made = [store.add_session(session(f"d{n}")).id for n in range(3)]
    store.jobs.add(job(made[0]), most_unfinished=2)
    with pytest.raises(StateError, match=job(made[0]).id):
        store.jobs.add(job(made[0], 1), most_unfinished=2)
    store.jobs.add(job(made[1], 1), most_unfinished=2)
    with pytest.raises(StateError, match="as many as this server takes"):
        store.jobs.add(job(made[2], 2), most_unfinished=2)
    store.jobs.update(job(made[0]).id, state=JobState.RUNNING, attempts=1)
    assert [one.state for one in store.jobs.unfinished()] == ["running", "queued"]
    done = store.jobs.update(job(made[0]).id, state=JobState.DONE, revision=1, notes=["a"])
    assert (done.revision, done.notes, done.attempts) == (1, ("a",), 1)
    assert store.jobs.update(done.id, state=JobState.FAILED, error="late") == done
    assert [one.id for one in store.jobs.page()] == [job(made[1], 1).id, done.id]
    assert [one.id for one in store.jobs.page(state=JobState.DONE)] == [done.id]


def test_closed_session_takes_no_events_but_knows_those_it_has(
    store: Store, make_event: Events
) -> None:
    opened = store.add_session(session())
    first, _ = store.append_event(opened.id, make_event(1))
    store.close_session(opened.id, NOW, "done")
    with pytest.raises(StateError, match="closed"):
        store.append_event(opened.id, make_event(2))
    with pytest.raises(StateError):
        store.begin_epoch(opened.id)
    assert store.append_event(opened.id, make_event(1)) == (first, False)
    with pytest.raises(NotFoundError):
        store.append_event(new_session_id(NOW), make_event(1))


def test_values_that_json_or_the_database_cannot_hold_are_refused(
    store: Store, make_event: Events
) -> None:
    opened = store.add_session(session())
    for evidence in ({"x": float("nan")}, {"x": object()}):
        with pytest.raises(DataError, match="evidence"):
            store.append_event(opened.id, make_event(1, evidence=evidence))
    for wrong in ({"device_time_ns": 2**64}, {"confidence": float("nan")}, {"confidence": 1.5}):
        with pytest.raises(DataError, match=next(iter(wrong))):
            make_event(1, **wrong)


def test_progress_is_replaced_as_a_whole(store: Store) -> None:
    one, source = store.add_session(session()).id, KeyStepSource.PROCEDURE
    store.replace_progress(one, [key_step(one, n, source) for n in range(3)])
    store.replace_progress(one, [key_step(one, 0, source)])
    with pytest.raises(DataError, match="twice"):
        store.replace_progress(one, [key_step(one, 1, source), key_step(one, 1, source)])
    with pytest.raises(DataError, match="procedure only"):
        store.replace_progress(one, [key_step(one, 0, KeyStepSource.EXTRACTED)])
    assert [step.position for step in store.progress(one)] == [0]


@given(number=st.integers(0, 2**40), other=st.integers(0, 2**40), seconds=st.integers(0, 9999))
def test_event_ids_follow_from_what_defines_an_event(number: int, other: int, seconds: int) -> None:
    def event(n: int, title: str) -> StepEvent:
        return StepEvent(
            step_id=1,
            title=title,
            kind=StepEventKind.REMOVED,
            frame_idx=None,
            device_time_ns=n,
            epoch=1,
            detected_at=NOW + timedelta(seconds=seconds),
            confidence=1.0,
            branch=Branch.KEY_STEP_FILTER,
        )

    same = step_event_id("ses_a", event(number, "a")) == step_event_id("ses_a", event(other, "b"))
    assert same == (number == other)
    assert step_event_id("ses_a", event(number, "a")) != step_event_id("ses_b", event(number, "a"))


def test_event_ids_never_change_between_versions(make_event: Events) -> None:
    assert step_event_id("ses_a", make_event(1)) == "9623f4a9-a91d-5ec9-9fc3-c122ca8206d9"


def test_a_deleted_session_leaves_no_rows(store: Store, make_event: Events) -> None:
    one = store.add_session(session()).id
    store.append_event(one, make_event(1))
    source = KeyStepSource.PROCEDURE
    store.replace_progress(one, [key_step(one, 0, source)])
    store.revisions.add(one, new_revision(one, "a"), NOW)
    store.jobs.add(job(one), most_unfinished=9)
    with pytest.raises(StateError, match="close it first"):
        store.delete_session(one)
    store.close_session(one, NOW, "test")
    store.delete_session(one)
    assert store.events(one) == []
    assert store.progress(one) == store.revisions.all(one) == store.jobs.page() == []
    with pytest.raises(NotFoundError):
        store.session(one)
    assert [device.id for device in store.devices()] == ["hololens-07"]
