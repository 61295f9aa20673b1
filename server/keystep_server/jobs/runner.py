"""The queue of extraction jobs: a few subprocesses at a time, of lowest priority.

A job outlives the server: what was running when it ended is queued again, and `keystep extract`
goes on from what is on the disk (features from the tick, training from its last checkpoint).
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import structlog

from keystep_capture.errors import ConfigError, DataError, KeystepError, NotFoundError, StateError
from keystep_capture.recording import part_paths
from keystep_server.feed import Feed, Notice, key_steps_notice
from keystep_server.jobs.process import JobLog, JobProcess, last_line
from keystep_server.jobs.results import read_result
from keystep_server.recorder import FOLDER
from keystep_server.sessions import new_session_id, utc_now
from keystep_server.storage import Job, JobState, SessionState, Store

MAX_ATTEMPTS = 20
"""A job that so many servers did not survive is not begun again."""
MAX_UNFINISHED = 100
_PROGRESS_S = 1.0  # progress is told and written down no more often than this
_PROGRESS = {"stage": str, "recording": str, "done": int, "of": int, "loss": float}
_CHECK_S = 60.0
_PROGRAM = (sys.executable, "-m", "keystep_capture.cli")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSettings:
    """How jobs are run.

    Attributes:
        at_once: How many run at a time.
        time_limit_s: How long one attempt may take.
        program: How the `keystep` command is called.
        needs: The module without which that cannot extract.
    """

    at_once: int = 1
    time_limit_s: float = 12 * 3600.0
    program: tuple[str, ...] = _PROGRAM
    needs: str = "torch"


@dataclass(slots=True, kw_only=True)
class _Run:
    """A job whose turn it is; its process is on its way, or runs."""

    process: JobProcess | None = None
    cancelled: str | None = None  # why
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class JobRunner:
    """Takes, runs and cancels jobs; all methods belong to one event loop."""

    def __init__(
        self,
        store: Store,
        feed: Feed,
        data_dir: Path,
        settings: JobSettings,
        *,
        notice_of: Callable[[Job], Notice],
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        """Take what it stands on; `notice_of` says what the feed is told of a job."""
        self._store = store
        self._feed = feed
        self._sessions = data_dir.resolve() / "sessions"
        self._settings = settings
        self._notice_of = notice_of
        self._now = now
        self._queue: asyncio.Queue[str] = asyncio.Queue()
        self._runs: dict[str, _Run] = {}
        self._deleting: set[str] = set()
        self._workers: list[asyncio.Task[None]] = []
        self._checking = asyncio.Lock()

    # -- life ------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Queue what an earlier server left, and begin to run."""
        for job in await asyncio.to_thread(self._store.jobs.unfinished):
            if job.state is JobState.RUNNING:
                job = await self._update(job.id, state=JobState.QUEUED)
                log.info("a job goes on", job=job.id, session=job.session_id)
            self._queue.put_nowait(job.id)
        self._workers = [
            asyncio.create_task(self._work(), name=f"jobs {number}")
            for number in range(self._settings.at_once)
        ]

    async def stop(self) -> None:
        """End the processes; their jobs go on with the next server."""
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)

    # -- what REST asks for ----------------------------------------------------------------------

    async def submit(
        self, session_id: str, recordings: Sequence[str], flags: Sequence[str], options: Any
    ) -> Job:
        """Check and queue an extraction.

        Args:
            session_id: Whose key steps are wanted.
            recordings: Further sessions of the same task to train on.
            flags: The choices as flags of `keystep extract`.
            options: The same as JSON values, to be kept with the job.

        Raises:
            ConfigError: `keystep extract` refuses the choices.
            NotFoundError: There is no such session, or nothing is recorded of it.
            StateError: The [train] extra is not installed, a session is not closed, the session
                has an unfinished job, or too many wait.
        """
        _refuse_without(self._settings.needs)
        sessions = tuple(dict.fromkeys((session_id, *recordings)))
        for one in sessions:
            await asyncio.to_thread(self._check_recording, one)
        await self._check_choices(sessions, flags)
        now = self._now()
        job = Job(
            id=f"job_{new_session_id(now).partition('_')[2]}",
            session_id=session_id,
            recordings=sessions,
            options={"body": options, "flags": list(flags)},
            state=JobState.QUEUED,
            created_at=now,
        )
        if self._deleting.intersection(sessions):
            raise StateError("a session is being deleted")
        await asyncio.to_thread(self._store.jobs.add, job, most_unfinished=MAX_UNFINISHED)
        log.info("job queued", job=job.id, session=session_id)
        self._queue.put_nowait(job.id)
        self._tell(job)
        return job

    async def cancel(self, job_id: str, reason: str = "cancelled over REST") -> Job:
        """End a job for good; answers when its process has ended. Twice is as good as once.

        Raises:
            NotFoundError: There is no such job.
            StateError: It has ended otherwise.
        """
        job = await asyncio.to_thread(self._store.jobs.get, job_id)
        if (run := self._runs.get(job_id)) is not None:
            run.cancelled = run.cancelled or reason
            if run.process is not None:
                await run.process.stop()
            await run.ended.wait()
            job = await asyncio.to_thread(self._store.jobs.get, job_id)
        elif not job.state.is_final:
            job = await self._finish(job_id, JobState.CANCELLED, reason)
        if job.state is not JobState.CANCELLED:
            raise StateError(f"job {job_id} is {job.state.value} already; it cannot be cancelled")
        return job

    @asynccontextmanager
    async def deleting(self, session_id: str) -> AsyncIterator[None]:
        """While a session is deleted: jobs that read its recording are cancelled, none is taken."""
        self._deleting.add(session_id)
        try:
            for job in await asyncio.to_thread(self._store.jobs.unfinished):
                if session_id in job.recordings:
                    with contextlib.suppress(StateError, NotFoundError):  # it has just ended
                        await self.cancel(job.id, f"session {session_id} was deleted")
            yield
        finally:
            self._deleting.discard(session_id)

    def log_path(self, job: Job) -> Path:
        """Where a job's log lies."""
        return self._sessions / job.session_id / "jobs" / job.id / "log.txt"

    # -- own: checks -----------------------------------------------------------------------------

    def _check_recording(self, session_id: str) -> None:
        session = self._store.session(session_id)
        if session.state is not SessionState.CLOSED:
            raise StateError(f"session {session_id} is {session.state.value}; close it first")
        if not part_paths(self._sessions / session_id / FOLDER):
            raise NotFoundError(f"nothing is recorded of session {session_id}")

    async def _check_choices(self, sessions: Sequence[str], flags: Sequence[str]) -> None:
        """Have the command itself look at the choices, one request after another."""
        async with self._checking:
            arguments = ["extract", *self._recording_paths(sessions), *flags, "--check"]
            process = await asyncio.create_subprocess_exec(
                *self._settings.program,
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
            )
            try:
                async with asyncio.timeout(_CHECK_S):
                    _, errors = await process.communicate()
            except TimeoutError:
                raise StateError("the choices could not be checked in time; try again") from None
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
        if process.returncode != 0:
            raise ConfigError(
                last_line(errors) or f"keystep extract ended with code {process.returncode}"
            )

    def _recording_paths(self, sessions: Sequence[str]) -> list[str]:
        return [str(self._sessions / one / FOLDER) for one in sessions]

    # -- own: running ----------------------------------------------------------------------------

    async def _work(self) -> None:
        while True:
            job_id = await self._queue.get()
            run = self._runs[job_id] = _Run()
            try:
                await self._run(job_id, run)
            except NotFoundError as error:
                log.info("a job is gone with its session", job=job_id, error=str(error))
                await self._fail(job_id, str(error))
            except (KeystepError, OSError) as error:
                log.warning("a job failed", job=job_id, error=str(error))
                await self._fail(job_id, str(error))
            except Exception as error:  # one job's trouble must not end the queue
                log.exception("a job failed", job=job_id)
                await self._fail(job_id, f"unexpected {type(error).__name__}; see the server's log")
            finally:
                del self._runs[job_id]
                run.ended.set()

    async def _fail(self, job_id: str, error: str) -> None:
        try:
            await self._finish(job_id, JobState.FAILED, error)
        except NotFoundError:  # it was deleted with its session
            return
        except Exception:  # a full disk, say: the next server will begin it again
            log.exception("that a job failed could not be written down", job=job_id)

    async def _run(self, job_id: str, run: _Run) -> None:
        job = await asyncio.to_thread(self._store.jobs.get, job_id)
        if job.state.is_final:
            return
        if job.attempts >= MAX_ATTEMPTS:
            raise StateError(f"the server ended {job.attempts} times while this job ran")
        job = await self._update(
            job_id,
            state=JobState.RUNNING,
            attempts=job.attempts + 1,
            started_at=job.started_at or self._now(),
        )
        work = self._sessions / job.session_id / "extraction"
        arguments = await asyncio.to_thread(self._prepare, job, work)
        job_log = await asyncio.to_thread(JobLog, self.log_path(job))
        try:
            job_log.note(self._now(), f"attempt {job.attempts}: keystep {' '.join(arguments)}")
            run.process = await JobProcess.start(
                self._settings.program, arguments, folder=work, log=job_log
            )
            try:
                if run.cancelled is not None:
                    await run.process.stop()
                await self._follow(job, run, run.process, job_log)
            finally:
                await run.process.stop()
        finally:
            job_log.close()

    def _prepare(self, job: Job, work: Path) -> list[str]:
        """The command's arguments; recordings get the names of their sessions by links."""
        links = work / "recordings"
        links.mkdir(parents=True, exist_ok=True)
        for one in job.recordings:
            link, target = links / one, self._sessions / one / FOLDER
            if not target.is_dir():
                raise NotFoundError(f"the recording of session {one} is no longer there")
            if not link.is_symlink():
                link.symlink_to(target)
        return [
            "extract",
            *(str(links / one) for one in job.recordings),
            *(f"--out={work}", "--progress=json"),
            *job.options["flags"],
        ]

    async def _follow(self, job: Job, run: _Run, process: JobProcess, job_log: JobLog) -> None:
        """Tell of a process's progress, and make of its end what it means."""
        try:
            async with asyncio.timeout(self._settings.time_limit_s):
                await self._follow_progress(job, process, job_log)
                ending = await process.ended()
        except TimeoutError:
            raise StateError(f"it took longer than {self._settings.time_limit_s:g} s") from None
        if run.cancelled is not None:
            job_log.note(self._now(), run.cancelled)
            await self._finish(job.id, JobState.CANCELLED, run.cancelled)
            return
        if ending.code != 0:
            job_log.note(self._now(), f"failed: {ending.reason}")
            raise StateError(ending.reason)
        await self._store_result(job)
        job_log.note(self._now(), "done")

    async def _follow_progress(self, job: Job, process: JobProcess, job_log: JobLog) -> None:
        loop = asyncio.get_running_loop()
        stage: tuple[Any, ...] | None = None
        told_s = 0.0
        async for event in process.events():
            progress = {
                name: event[name][:200] if kind is str else event[name]
                for name, kind in _PROGRESS.items()
                if isinstance(event.get(name), kind)
            }
            of_stage = (progress.get("stage"), progress.get("recording"))
            if of_stage != stage:
                job_log.note(self._now(), " ".join(str(word) for word in of_stage if word))
            elif loop.time() - told_s < _PROGRESS_S:
                continue
            stage, told_s = of_stage, loop.time()
            await self._update(job.id, progress=progress)

    async def _store_result(self, job: Job) -> None:
        folder = self._sessions / job.session_id
        made = folder / "extraction" / job.session_id
        try:
            revision, notes = await asyncio.to_thread(read_result, job, made, folder)
        except FileNotFoundError as error:
            raise DataError(f"its process ended without a result: {error}") from None
        stored = await asyncio.to_thread(
            self._store.revisions.add, job.session_id, revision, self._now()
        )
        assert stored is not None
        self._feed.publish(key_steps_notice(stored))
        await self._update(
            job.id,
            state=JobState.DONE,
            finished_at=self._now(),
            revision=stored.number,
            notes=list(notes),
        )
        log.info("job done", job=job.id, session=job.session_id, revision=stored.number)

    async def _finish(self, job_id: str, state: JobState, error: str) -> Job:
        return await self._update(job_id, state=state, finished_at=self._now(), error=error[:1000])

    async def _update(self, job_id: str, **changes: Any) -> Job:
        job = await asyncio.to_thread(self._store.jobs.update, job_id, **changes)
        self._tell(job)
        return job

    def _tell(self, job: Job) -> None:
        self._feed.publish(self._notice_of(job))


def _refuse_without(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise StateError(
            f"extraction trains encoders and needs {module}: install Keystep's [train] extra "
            "where the server runs (pip install 'keystep[train]') and ask again"
        )
