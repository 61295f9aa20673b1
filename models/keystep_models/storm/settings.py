"""Choices of a STORM training run: the paper's (`published`) and one for two CPU cores (`small`).

Source: Schoonbeek et al., STORM-PSR, arXiv:2510.12385. Lengths in time are seconds, so that they
hold at any rate; clips are counted in ticks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from types import MappingProxyType
from typing import Any, Final, Literal, TypeAlias, get_args

from keystep_capture.errors import ConfigError

InputKind: TypeAlias = Literal["appearance", "picture"]
TemporalKind: TypeAlias = Literal["transformer", "gru", "mlp"]
FineTuning: TypeAlias = Literal["none", "temporal", "all"]

MAX_CLIP_TICKS: Final = 4096
MAX_WINDOW_BYTES: Final = 16 << 20
"""So much of embeddings one live session may remember."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSettings:
    """One stage's optimisation.

    Attributes:
        epochs: 0 leaves the stage out.
        steps: Batches of an epoch.
        batch: Clips of a batch; the contrastive stage's follows from its classes.
        learning_rate: At the start of each cosine cycle.
        weight_decay: AdamW's.
        cycles: Cosine cycles the stage is divided into.
    """

    epochs: int
    steps: int
    batch: int
    learning_rate: float
    weight_decay: float
    cycles: int = 1

    def __post_init__(self) -> None:
        """Check every number."""
        if self.epochs < 0 or min(self.steps, self.batch, self.cycles) < 1:
            raise ConfigError(f"a stage needs steps, batch and cycles of 1 or more, got {self}")
        if not (0 < self.learning_rate < math.inf and 0 <= self.weight_decay < math.inf):
            raise ConfigError(f"a stage needs a learning rate above 0, got {self}")

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of a step of the stage, counted from 0: cosine cycles down to zero."""
        total = max(1, self.epochs * self.steps)
        within = (step * self.cycles / total) % 1.0
        return self.learning_rate * 0.5 * (1.0 + math.cos(math.pi * within))


@dataclass(frozen=True, slots=True, kw_only=True)
class StormSettings:
    """Everything that decides a run.

    Attributes:
        input: What the spatial encoder sees of a tick: EfficientNet-Lite0's frozen feature
            (1280 values), or the picture (224 x 224, ViT-S/16).
        embedding: Values of an embedding (D).
        hidden: Width of the layer before the embedding, for "appearance"; 0: none.
        input_dropout: Share of an appearance feature's values left out in training, since people
            are few and features many.
        temporal: The temporal model; GRU and MLP (of all embeddings side by side) are baselines.
        width: Of its tokens; embeddings of another size are projected.
        depth: Layers.
        heads: Of attention, each `head_width` wide.
        feed_forward: Width of the layers between attentions (for "mlp" of its hidden layer).
        dropout: In the temporal model.
        clip_frames: Frames of a clip (N).
        clip_every: Every how many ticks one is taken (published: 4, "skip 3").
        rate_hz: Ticks a second.
        key_frames: Contrastive batches from frames around completions (KFS); else from all frames.
        positive_s: Frames so long after a completion show its state.
        negative_s: Frames so long before a completion are hard negatives.
        min_sessions: A state must be reached in so many sessions to be a class.
        key_clips: Clips are drawn around completions; else evenly.
        clip_offset: Distance of a clip's end from the completion, in clip lengths.
        clip_sigma: Standard deviation of that, in clip lengths.
        gap_share: Share of training clips that get a gap, as live sessions have them.
        classes: States of a contrastive batch, with `per_class` frames each and `background` more.
        temperature: Of the contrastive loss.
        contrastive: First stage: the spatial encoder.
        temporal_stage: Second: the temporal model on stored embeddings.
        fine_tuning: Third stage: none, the temporal model alone (spatial frozen), or all.
        fine_tune: Its optimisation.
        threshold: Sum of sigmoids that completes a step.
        decay: Of sums that did not gain.
        seed: Of weights and every draw.
    """

    input: InputKind = "appearance"
    embedding: int = 128
    hidden: int = 0
    input_dropout: float = 0.5
    temporal: TemporalKind = "transformer"
    width: int = 64
    depth: int = 2
    heads: int = 4
    head_width: int = 16
    feed_forward: int = 128
    dropout: float = 0.1
    clip_frames: int = 65
    clip_every: int = 2
    rate_hz: float = 10.0
    key_frames: bool = True
    positive_s: float = 2.0
    negative_s: tuple[float, float] = (4.0, 6.0)
    min_sessions: int = 2
    key_clips: bool = True
    clip_offset: float = 80 / 257
    clip_sigma: float = 15 / 257
    gap_share: float = 0.1
    classes: int = 11
    per_class: int = 8
    background: int = 8
    temperature: float = 0.07
    contrastive: StageSettings = StageSettings(
        epochs=10, steps=50, batch=96, learning_rate=1e-3, weight_decay=1e-4
    )
    temporal_stage: StageSettings = StageSettings(
        epochs=8, steps=40, batch=64, learning_rate=1e-3, weight_decay=5e-4
    )
    fine_tuning: FineTuning = "none"
    fine_tune: StageSettings = StageSettings(
        epochs=10, steps=40, batch=32, learning_rate=3e-4, weight_decay=1e-4
    )
    threshold: float = 6.0
    decay: float = 0.75
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every choice."""
        for name, kind in (
            ("input", InputKind),
            ("temporal", TemporalKind),
            ("fine_tuning", FineTuning),
        ):
            if getattr(self, name) not in get_args(kind):
                known = ", ".join(get_args(kind))
                raise ConfigError(f"{name} is {getattr(self, name)!r}, expected one of {known}")
        for name in (
            *("embedding", "width", "depth", "heads", "head_width", "feed_forward"),
            *("clip_every", "min_sessions", "classes", "per_class", "background"),
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if self.clip_frames < 2 or self.clip_ticks > MAX_CLIP_TICKS:
            raise ConfigError(
                f"expected clips of 2 frames or more within {MAX_CLIP_TICKS} ticks, got"
                f" {self.clip_frames} frames, every {self.clip_every} ticks"
            )
        window_bytes = 2 * self.clip_frames * self.clip_every * self.embedding * 4
        if window_bytes > MAX_WINDOW_BYTES:  # as `ClipWindow` has them
            raise ConfigError(
                f"clips of {self.clip_ticks} ticks of {self.embedding} values take"
                f" {window_bytes >> 20} MiB a live session, more than {MAX_WINDOW_BYTES >> 20};"
                " choose a smaller embedding or shorter clips"
            )
        if not 0 <= self.seed < 1 << 63:
            raise ConfigError(f"seed must be 0 or more, below 2**63, got {self.seed}")
        for name in ("rate_hz", "positive_s", "clip_sigma", "temperature", "threshold"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be above 0, got {getattr(self, name)}")
        if not 0 <= self.negative_s[0] < self.negative_s[1] < math.inf:
            raise ConfigError(f"negative_s must be two rising times, got {self.negative_s}")
        for name in ("input_dropout", "dropout", "gap_share", "clip_offset"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} must be 0 or more, below 1, got {getattr(self, name)}")
        if not 0 <= self.decay <= 1 or self.hidden < 0:
            raise ConfigError(f"expected decay from 0 to 1 and hidden 0 or more, got {self}")

    def with_temporal(self, kind: TemporalKind) -> StormSettings:
        """These settings with another temporal model.

        A small GRU gets twice the steps at three times the learning rate: with the transformer's
        it learns nothing.
        """
        stage = self.temporal_stage
        if kind == "gru" and self.input == "appearance":
            rate = 3 * stage.learning_rate
            stage = replace(stage, epochs=2 * stage.epochs, learning_rate=rate)
        return replace(self, temporal=kind, temporal_stage=stage)

    @property
    def clip_ticks(self) -> int:
        """Ticks that a clip spans, first and last included."""
        return (self.clip_frames - 1) * self.clip_every + 1

    def as_document(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> StormSettings:
        """The inverse of `as_document` after a journey through JSON; ConfigError otherwise."""
        if unknown := set(document) - {field.name for field in fields(cls)}:
            raise ConfigError(f"unknown STORM settings: {', '.join(sorted(unknown))}")
        values = dict(document)
        try:
            for name in ("contrastive", "temporal_stage", "fine_tune"):
                if name in values:
                    values[name] = StageSettings(**values[name])
            if "negative_s" in values:
                values["negative_s"] = tuple(values["negative_s"])
            return cls(**values)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"no STORM settings: {error}") from error


PRESETS: Final[Mapping[str, StormSettings]] = MappingProxyType(
    {
        "small": StormSettings(),
        # As published; steps of the second stage are one pass over IndustReal's frames.
        "published": StormSettings(
            input="picture", input_dropout=0.0, width=128, depth=6, heads=8, head_width=128,
            feed_forward=4096, clip_every=4, negative_s=(12.0, 14.0), min_sessions=1, gap_share=0.0,
            contrastive=StageSettings(
                epochs=100, steps=500, batch=96, learning_rate=1e-3, weight_decay=1e-6
            ),
            temporal_stage=StageSettings(
                epochs=50, steps=500, batch=256, learning_rate=1e-3, weight_decay=5e-4, cycles=5
            ),
            fine_tuning="all",
            fine_tune=StageSettings(
                epochs=100, steps=500, batch=8, learning_rate=1e-4, weight_decay=1e-4
            ),
        ),
    }
)  # fmt: skip
"""Settings by name."""


def storm_preset(name: str) -> StormSettings:
    """The settings of a preset; ConfigError names the known ones."""
    if name not in PRESETS:
        raise ConfigError(f"no preset is called {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]


def change_epochs(stage: StageSettings, epochs: int | None) -> StageSettings:
    """The stage with another number of epochs; None changes nothing."""
    return stage if epochs is None else replace(stage, epochs=epochs)
