"""What can be chosen when key steps are learned and extracted; presets. No torch here.

Numbers are STEPs' (table 15) unless a preset says otherwise.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final, Literal, TypeAlias, get_args, get_type_hints

from keystep_capture.errors import ConfigError

EncoderKind: TypeAlias = Literal["transformer", "lstm", "tcn"]
PositionKind: TypeAlias = Literal["frame", "none", "after_mlp", "age"]
WindowKind: TypeAlias = Literal["sigma", "sampled", "union_negatives", "union"]
ClusteringKind: TypeAlias = Literal["kmeans", "finch"]
SpacingKind: TypeAlias = Literal["chunks", "live"]
SamplingKind: TypeAlias = Literal["nearest", "ils"]

MAX_SEED: Final = 2**31 - 1
MAX_LEARNING_RATE: Final = 1e6

PairWeights: TypeAlias = tuple[tuple[str, str, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSettings:
    """How the temporal encoders are trained.

    Attributes:
        cues: Cues to train on; the first is the anchor, whose pairs with every other are formed.
        bootstrap: Cues whose raw features widen the window; empty: the anchor's.
        encoder: Of every cue.
        position: "frame" adds the encoding of the frame index to the raw feature, "none" nothing,
            "after_mlp" adds it behind a layer that learns (table 11's weaker variant), "age"
            (transformers) lowers attention by the distance in frames instead (ALiBi).
        causal: Whether a frame sees only itself and earlier ones.
        context: For a causal transformer: frame i sees i - context + 1 to i; 0: all earlier ones.
        window: Variant of table 10.
        sigma_seconds: Half-width of the temporal window, s.
        margin: Distance up to which negatives are pushed apart.
        pair_weights: (cue, cue, lambda); empty: 1 for each cue with itself and for the anchor
            with each other cue in both directions.
        soft_dtw: Weight of the alignment of the anchor cue's features between the videos of a
            batch (section E.2); 0: without it.
        extent: Fraction of a video that a sample spans (beta).
        chunk_count: Frames of a sample (N). "chunks": videos with fewer frames repeat some;
            "live": all samples of a batch are as short as the shortest video.
        spacing: "chunks" draws a frame from each of N equal parts of a video, as published;
            "live" takes N frames one after the other, as they come live.
        tempo: "live" only: a sample is played slower or faster, by up to this factor; 1: never.
        batch_size: Videos of a step.
        epochs: An epoch draws max(batch_size, videos) videos with replacement.
        learning_rate: Of Adam.
        drop_epochs: Epochs at which the learning rate is multiplied by `drop_factor`.
        drop_factor: As above.
        seed: Of initial weights and of every draw.
    """

    cues: tuple[str, ...] = ("appearance", "motion")
    bootstrap: tuple[str, ...] = ()
    encoder: EncoderKind = "transformer"
    position: PositionKind = "frame"
    causal: bool = False
    context: int = 0
    window: WindowKind = "union"
    sigma_seconds: float = 10.0
    margin: float = 2.0
    pair_weights: PairWeights = ()
    soft_dtw: float = 0.0
    extent: float = 1.0
    chunk_count: int = 1024
    spacing: SpacingKind = "chunks"
    tempo: float = 1.0
    batch_size: int = 4
    epochs: int = 300
    learning_rate: float = 1e-3
    drop_epochs: tuple[int, ...] = ()
    drop_factor: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every choice."""
        _check_choices(self)
        if not self.cues or len(set(self.cues)) != len(self.cues):
            raise ConfigError(f"expected cues, each once; got {', '.join(self.cues) or 'none'}")
        for name in {*self.bootstrap, *(c for u, v, _ in self.pair_weights for c in (u, v))}:
            if name not in self.cues:
                raise ConfigError(f"cue {name!r} is not trained on ({', '.join(self.cues)})")
        _check_above(self, 0, "sigma_seconds", "margin", "learning_rate", "drop_factor", "extent")
        _check_above(self, 1, "chunk_count")
        for name in ("batch_size", "epochs"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if not 0.0 <= self.soft_dtw < math.inf:
            raise ConfigError(f"soft_dtw must be 0 or more, got {self.soft_dtw}")
        if wrong := [pair for pair in self.pair_weights if not 0.0 <= pair[2] < math.inf]:
            first, second, weight = wrong[0]
            raise ConfigError(f"lambda of {first}:{second} must be 0 or more, got {weight}")
        _check_seed(self.seed)
        if self.learning_rate > MAX_LEARNING_RATE:
            raise ConfigError(f"learning_rate must be at most 1e6, got {self.learning_rate}")
        if self.extent > 1.0:
            raise ConfigError(f"extent must be at most 1, got {self.extent}")
        if self.context < 0 or (self.context and not (self.causal and self.encoder != "lstm")):
            raise ConfigError("context is for causal transformers and must be 0 or more")
        if self.context and self.encoder != "transformer":
            raise ConfigError("context is for causal transformers and must be 0 or more")
        if self.position == "age" and self.encoder != "transformer":
            raise ConfigError("position age is for transformers")
        if not 1.0 <= self.tempo <= 4.0 or (self.tempo > 1.0 and self.spacing != "live"):
            raise ConfigError(f"tempo must be 1 to 4 and goes with live spacing, got {self.tempo}")
        if any(epoch < 1 for epoch in self.drop_epochs):
            raise ConfigError(f"drop_epochs must be 1 or more, got {self.drop_epochs}")

    @property
    def anchor(self) -> str:
        """The cue whose pairs with every other cue are formed."""
        return self.cues[0]

    @property
    def bootstrap_cues(self) -> tuple[str, ...]:
        """The cues whose raw features widen the window."""
        return self.bootstrap or (self.anchor,)

    def learning_rate_at(self, epoch: int) -> float:
        """Learning rate of an epoch, counted from 0."""
        drops = sum(epoch >= drop for drop in self.drop_epochs)
        return float(self.learning_rate * self.drop_factor**drops)

    def as_document(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> TrainingSettings:
        """The inverse of `as_document` after a journey through JSON."""
        if unknown := set(document) - {field.name for field in fields(cls)}:
            raise ConfigError(f"unknown training settings: {', '.join(sorted(unknown))}")
        return cls(**{name: _as_tuples(value) for name, value in document.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractionSettings:
    """How key steps are made of adapted features (algorithm 1).

    Attributes:
        inference_cues: Cues whose adapted features are joined; empty: all that were trained on.
        stride: Every how many ticks a frame is taken (2 as published).
        clustering: k-means, or FINCH, which finds the number itself.
        cluster_count: K; 0: the number whose clusters lie apart best (see `clustering`).
        alpha: Fraction of each cluster's frames to reject as background.
        gamma_s: A cluster's frames farther apart than this start a new segment, s.
        min_duration_s: Segments shorter than this are left out, s; the paper keeps all.
        sampling: Which segments become key steps: all, by nearness to the centre; or an ILS-SUMM
            style summary within `budget` of the recording's length.
        top_n: Keep only so many; 0: all.
        budget: For "ils": fraction of the recording that the summary may last.
        seed: Of clustering and sampling.
    """

    inference_cues: tuple[str, ...] = ()
    stride: int = 2
    clustering: ClusteringKind = "kmeans"
    cluster_count: int = 7
    alpha: float = 0.1
    gamma_s: float = 2.0
    min_duration_s: float = 0.5
    sampling: SamplingKind = "nearest"
    top_n: int = 0
    budget: float = 0.15
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every choice."""
        _check_choices(self)
        if self.stride < 1:
            raise ConfigError(f"stride must be 1 or more, got {self.stride}")
        for name in ("cluster_count", "top_n"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if not 0.0 <= self.alpha < 1.0:
            raise ConfigError(f"alpha must be at least 0 and below 1, got {self.alpha}")
        if not 0.0 < self.budget <= 1.0:
            raise ConfigError(f"budget must be above 0 and at most 1, got {self.budget}")
        if not 0.0 <= self.min_duration_s < math.inf:
            raise ConfigError(f"min_duration_s must be 0 or more, got {self.min_duration_s}")
        _check_above(self, 0, "gamma_s")
        _check_seed(self.seed)

    def as_document(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def preset(name: str) -> TrainingSettings:
    """The settings of a preset.

    Raises:
        ConfigError: No such preset; the message names the known ones.
    """
    if name not in PRESETS:
        raise ConfigError(f"no preset is called {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]


def with_changes(settings: TrainingSettings, **changes: Any) -> TrainingSettings:
    """The settings with everything replaced that is not None."""
    return replace(settings, **{name: v for name, v in changes.items() if v is not None})


def parse_pair_weights(text: str) -> PairWeights:
    """Lambdas from text like "appearance:motion=0.5,motion:motion=1".

    Raises:
        ConfigError: It is not of that form.
    """
    weights = []
    for part in filter(None, text.split(",")):
        try:
            pair, value = part.split("=")
            first, second = pair.split(":")
            weights.append((first.strip(), second.strip(), float(value)))
        except ValueError:
            raise ConfigError(f"{part!r}: expected CUE:CUE=NUMBER") from None
    return tuple(weights)


def _as_tuples(value: Any) -> Any:
    return tuple(_as_tuples(each) for each in value) if isinstance(value, list) else value


def _check_choices(settings: Any) -> None:
    for name, hint in get_type_hints(type(settings)).items():
        choices = get_args(hint)
        if choices and all(isinstance(choice, str) for choice in choices):
            value = getattr(settings, name)
            if value not in choices:
                raise ConfigError(f"{name} is {value!r}, expected one of {', '.join(choices)}")


def _check_above(settings: Any, least: float, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if not least < value < math.inf:
            raise ConfigError(f"{name} must be above {least}, got {value}")


def _check_seed(seed: int) -> None:
    if not 0 <= seed <= MAX_SEED:
        raise ConfigError(f"seed must be 0 to {MAX_SEED}, got {seed}")


PRESETS: dict[str, TrainingSettings] = {
    # Table 15, Meccano.
    "published": TrainingSettings(),
    # Minutes on two CPU cores; shorter sequences and a sixth of the steps.
    "small": TrainingSettings(chunk_count=512, epochs=100, drop_epochs=(80,)),
    # Encoders that run tick by tick, trained as they are used then.
    "live": TrainingSettings(
        causal=True, context=1024, spacing="live", position="age", epochs=100, drop_epochs=(80,)
    ),
}
