"""The simulated headset's voice input: phrases it is told to listen for, and what is said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from keystep_hololens.hl2ss import voice_input as vi
from keystep_hololens.simulator.clock import DeviceClock
from keystep_hololens.simulator.ports import Client

_DURATION_HNS = 6_000_000


@dataclass(slots=True, kw_only=True)
class VoiceControl:
    """Ears of the simulated headset; tests and demos speak through `say`.

    Attributes:
        phrases: What the present client listens for; empty where there is none.
    """

    phrases: tuple[str, ...] = ()
    _heard: list[vi.HeardPhrase] = field(default_factory=list)
    _now_utc_hns: Callable[[], int] = field(default=lambda: 0)

    def follow(self, clock: DeviceClock) -> None:
        """Take times from the headset's clock."""
        self._now_utc_hns = clock.utc_hns

    def say(self, phrase: str, confidence: vi.Confidence = vi.Confidence.HIGH) -> None:
        """Say something; without a client that listens it is lost."""
        if not self.phrases:
            return
        known = phrase in self.phrases
        self._heard.append(
            vi.HeardPhrase(
                phrase_idx=self.phrases.index(phrase) if known else len(self.phrases),
                confidence=confidence,
                duration_hns=_DURATION_HNS,
                start_filetime_hns=max(0, self._now_utc_hns() - _DURATION_HNS),
                raw_confidence=0.95 - 0.3 * confidence,
            )
        )

    async def serve(self, client: Client) -> None:
        """Serve one client until it leaves, or asks for what cannot be listened for."""
        try:
            while (parsed := await client.receive(vi.parse_phrases)) is not None:
                phrases, size = parsed
                client.discard(size)
                if not phrases:
                    return
                self.phrases, self._heard = phrases, []
                if not await self._answer_polls(client):
                    return
                self.phrases = ()
        finally:
            self.phrases = ()

    async def _answer_polls(self, client: Client) -> bool:
        """Answer until told to stop; False where the client left or talks nonsense."""
        while (asked := await client.receive(lambda data: data[:1] or None)) is not None:
            client.discard(1)
            if asked == vi.STOP:
                return True
            if asked != vi.POLL:
                return False
            heard, self._heard = self._heard, []
            await client.send(vi.encode_heard(heard))
        return False
