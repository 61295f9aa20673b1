"""The whole story on this machine: one expert's recording becomes another wearer's guidance."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import av
from rich.console import Console

from keystep_capture.samples import LabelledStep, find_sample, load_labels
from keystep_server.demo_base import DemoRun, DemoServer, DemoSettings, plain_table
from keystep_server.demo_processes import KeystepProcess, ProcessError
from keystep_server.story_picture import Told, draw_story

PROCEDURE = "toy-cart"
TOLERANCE_S = 10.0
_RATE_HZ = 10.0
_POLL_S = 0.5
_PUBLISH_S = 600.0  # a picture a tick is looked at where no extraction did it
_STAGES = {
    "features": "reading the recording: appearance, motion, what is looked at, ten times a second",
    "training": "training temporal encoders on just this recording",
    "key_steps": "clustering, choosing exemplars, making a bundle",
}


class Story(DemoRun):
    """Expert, extraction, review, publication, novice."""

    _display = "silent"  # the best that the novice's headset has said of it

    async def _tell(self, stack: AsyncExitStack, server: DemoServer) -> None:
        expert = await self._record(stack, server)
        await self._extract(server, expert)
        titles = await self._review(server, expert)
        await self._publish(server, expert)
        novice, events = await self._guide(stack, server)
        await self._sum_up(server, expert, novice, events, titles)

    def __init__(self, settings: DemoSettings, console: Console | None = None) -> None:
        super().__init__(settings, console)
        self._labels: dict[str, list[LabelledStep]] = {}

    # -- the chapters ----------------------------------------------------------------------------

    async def _record(self, stack: AsyncExitStack, server: DemoServer) -> str:
        self._title(
            "1. An expert works, and is recorded",
            "Simulated: a rendered person assembles a toy cart in 112 s, seen by a simulated "
            f"HoloLens 2; played {self._settings.speed:g} times as fast.",
        )
        session = await self._open(server, "expert", {"kind": "expert", "task": "toy cart"})
        bridge = await self._stream(stack, server, session, "expert", "--kind", "expert")
        await self._close(server, session)
        await bridge.ended()
        stats = (await self._get(server, f"/sessions/{session}/stats"))["stats"]
        size_mb = stats["recording"]["bytes"] / 1e6 if "bytes" in stats["recording"] else None
        told = "" if size_mb is None else f", {size_mb:.1f} MB"
        self._say(f"   {stats['ticks']} ticks{told}: session {session}")
        self._labels["expert"] = _labels_of("expert", stats["ticks"])
        return session

    async def _extract(self, server: DemoServer, session: str) -> None:
        self._title(
            "2. Key steps are extracted by a job",
            "Without a label: the encoders are trained on this one recording (preset small).",
        )
        path = f"/api/v1/sessions/{session}/extraction"
        response = await server.rest.post(path, json={"cues": ["appearance", "motion"]})
        if response.status_code == 409 and "torch" in response.text:
            self._say("   That needs torch, which is not installed: pip install 'keystep[train]'.")
            self._say("   The story goes on with the key steps that were found without training")
            self._say("   when the session was closed.")
            return
        response.raise_for_status()
        job, stage = response.json(), None
        while job["state"] in ("queued", "running"):
            await asyncio.sleep(_POLL_S)
            job = await self._get(server, f"/jobs/{job['id']}")
            now = (job["progress"] or {}).get("stage")
            if now != stage and now in _STAGES:
                self._say(f"   {_STAGES[now]} ...")
            stage = now
        if job["state"] != "done":
            raise ProcessError(f"the extraction {job['state']}: {job['error']}")
        for note in job["notes"]:
            self._say(f"   note: {note}")

    async def _review(self, server: DemoServer, session: str) -> dict[int, str]:
        """Give the key steps names; by the number that publishing gives them."""
        self._title(
            "3. They are reviewed",
            "A person would name and merge them; here the simulation's own labels do: a key step "
            "has the name of what is under way at its exemplar; neighbours of one name are one.",
        )
        labels = self._labels["expert"]
        names: list[str] = []
        operations: list[dict[str, Any]] = []
        found = await self._key_steps(server, session)
        named = itertools.groupby(found, lambda step: _step_at(labels, step["exemplar_s"]))
        for label, group in named:
            ids = [step["id"] for step in group]
            names.append(_unused(label, names))
            if len(ids) > 1:
                operations.append({"op": "merge", "ids": ids, "title": names[-1]})
            else:
                operations.append({"op": "rename", "id": ids[0], "title": names[-1]})
        path = f"/api/v1/sessions/{session}/key-steps"
        response = await server.rest.patch(path, json={"operations": operations})
        response.raise_for_status()
        table = plain_table("key step", "from s", "to s", "exemplar s")
        for step in await self._key_steps(server, session):
            seconds = (step["start_s"], step["end_s"], step["exemplar_s"])
            table.add_row(step["title"], *(f"{value:.1f}" for value in seconds))
        self._console.print(table)
        return dict(enumerate(names, start=1))

    async def _publish(self, server: DemoServer, session: str) -> None:
        path = f"/api/v1/sessions/{session}/key-steps/publish"
        body = {"name": PROCEDURE, "task": "toy cart"}
        response = await server.rest.post(path, json=body, timeout=_PUBLISH_S)
        if response.status_code != 201:
            raise ProcessError(f"publishing failed: {response.text[:300]}")
        bundle = response.json()["bundle_id"]
        self._title(
            "4. They are published",
            f"Procedure {PROCEDURE}, which pins bundle {bundle[:12]}: ready for new sessions.",
        )
        for part in (await self._get(server, f"/bundles/{bundle}"))["parts"]:
            because = part["source"].get("because")
            self._say(f"   It looks at: {part['cue']}" + (f" ({because})" if because else ""))

    async def _guide(
        self, stack: AsyncExitStack, server: DemoServer
    ) -> tuple[str, list[dict[str, Any]]]:
        self._title(
            "5. A novice is guided by them",
            "Simulated: another person, slower, in another order and with mistakes (168 s).",
        )
        body = {"kind": "guided", "procedure": PROCEDURE}
        session = await self._open(server, "novice", body)
        events: list[dict[str, Any]] = []
        following = asyncio.create_task(self._follow(server, session, events))
        try:
            bridge = await self._stream(stack, server, session, "novice")
            await self._close(server, session)
            await bridge.ended()
            await following
        finally:
            following.cancel()
        stats = (await self._get(server, f"/sessions/{session}/stats"))["stats"]
        self._labels["novice"] = _labels_of("novice", stats["ticks"])
        guidance = stats["guidance"]
        self._say(
            f"   The headset's display: {self._display}; it has received revision "
            f"{guidance['acknowledged_revision']} of {guidance['revision']} of the guidance."
        )
        return session, events

    async def _sum_up(
        self,
        server: DemoServer,
        expert: str,
        novice: str,
        events: Sequence[Mapping[str, Any]],
        titles: Mapping[int, str],
    ) -> None:
        listed = await self._get(server, f"/sessions/{novice}/events?limit=1000")
        standing = [event for event in listed["events"] if not event["retracted"]]
        progress = [
            step
            for step in (await self._get(server, f"/sessions/{novice}/key-steps"))["key_steps"]
            if step["source"] == "procedure"
        ]
        done = sum(step["status"] == "completed" for step in progress)
        self._say(f"   REST: {done} of {len(progress)} key steps are completed, and when.")
        truth = [
            (label.frame, number)
            for label in self._labels["novice"]
            for number, name in titles.items()
            if label.title == name and label.frame >= 0
        ]
        right = _count_right(truth, standing)
        self._say(
            f"   {len(standing)} reports stand, {len(events) - len(standing)} were taken back; "
            f"{right} lie within {TOLERANCE_S:g} s of their step's"
        )
        self._say("   completion in the simulation's labels. What to expect: docs/guidance.md.")
        picture = self._settings.out / "story.png"
        sheet = server.data_dir / "sessions" / expert / "contact_sheet.jpg"
        reported = [(event["frame_idx"], event["step_id"]) for event in standing]
        told = Told(titles=titles, truth=truth, reported=reported)
        await asyncio.to_thread(draw_story, picture, sheet, told)
        self._say(f"Picture: {picture}")

    # -- helpers ---------------------------------------------------------------------------------

    async def _open(self, server: DemoServer, who: str, body: dict[str, Any]) -> str:
        speed = self._settings.speed
        whole = {"device_id": f"demo-{who}", "replay": True, "time_scale": speed, **body}
        return await self._open_session(server, whole)

    async def _stream(
        self, stack: AsyncExitStack, server: DemoServer, session: str, who: str, *options: str
    ) -> KeystepProcess:
        scale = ("--time-scale", str(self._settings.speed))
        return await self._play(
            stack,
            server,
            session,
            who,
            simulate=("--sample", f"simulated-{who}", *scale),
            bridge=(*scale, *options),
        )

    async def _key_steps(self, server: DemoServer, session: str) -> list[dict[str, Any]]:
        found = (await self._get(server, f"/sessions/{session}/key-steps"))["key_steps"]
        extracted = [step for step in found if step["source"] == "extracted"]
        if not extracted:
            raise ProcessError("no key steps were extracted from the expert's session")
        return extracted

    async def _follow(self, server: DemoServer, session: str, events: list[dict[str, Any]]) -> None:
        """Print each step event as it is found."""
        url = f"/api/v1/sessions/{session}/events"
        headers = {"Accept": "text/event-stream"}
        reported: set[str] = set()
        async with server.rest.stream("GET", url, headers=headers, timeout=None) as stream:
            name = ""
            async for line in stream.aiter_lines():
                if line.startswith("event:"):
                    name = line[6:].strip()
                elif line.startswith("data:") and name == "step_event":
                    event = json.loads(line[5:])
                    word = "taken back" if event["retracted"] else f"{event['confidence']:.2f}"
                    time_s = event["frame_idx"] / _RATE_HZ
                    self._say(f"   {time_s:6.1f} s  {event['title']:<36}  {word}")
                    stats = (await self._get(server, f"/sessions/{session}/stats"))["stats"]
                    if self._display != "showing":  # once it has, that is what counts
                        self._display = stats["display"] or "silent"
                    if event["id"] not in reported:
                        reported.add(event["id"])
                        events.append(event)
                if name == "session_closed":
                    return


def _labels_of(who: str, tick_count: int) -> list[LabelledStep]:
    """The sample's labels, counted from the session's first tick.

    The simulated headset plays from when it is switched on, as a real one is on before its bridge
    comes: what a session lacks of the sample, it lacks at the beginning.
    """
    sample = find_sample(f"simulated-{who}")
    assert sample.video_path is not None
    with av.open(sample.video_path) as container:
        missed = max(0, container.streams.video[0].frames - tick_count)
    return [replace(label, frame=label.frame - missed) for label in load_labels(sample)]


def _step_at(labels: Sequence[LabelledStep], time_s: float) -> str:
    """The step that is under way: the next one to be done; after the last, that one."""
    later = (label.title for label in labels if label.frame >= time_s * _RATE_HZ)
    return next(later, labels[-1].title)


def _unused(name: str, used: Sequence[str]) -> str:
    """The name, numbered where it is taken."""
    if name not in used:
        return name
    number = 2
    while f"{name} ({number})" in used:
        number += 1
    return f"{name} ({number})"


def _count_right(truth: Sequence[tuple[int, int]], events: Sequence[Mapping[str, Any]]) -> int:
    """Reports near a completion of their own step, each completion counted once."""
    left = list(truth)
    right = 0
    for event in events:
        for frame, number in left:
            near = abs(event["frame_idx"] - frame) <= TOLERANCE_S * _RATE_HZ
            if number == event["step_id"] and near:
                left.remove((frame, number))
                right += 1
                break
    return right
