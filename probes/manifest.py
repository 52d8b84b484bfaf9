"""The manifest of a probe artifact: what it reads, how it scores, when it alerts, and on what evidence.

It travels as JSON under the metadata key `probewatch` of the artifact's safetensors file (see
`probes.artifact`).
"""

import hashlib
import json
import math
import re
from bisect import bisect_left
from collections.abc import Mapping
from datetime import datetime
from itertools import pairwise
from typing import Annotated, Final, Literal, Self

from pydantic import Field, JsonValue, ValidationError, field_validator, model_validator

from probes.errors import ManifestInvalid
from probes.fields import Count, Digest, Finite, Label, Name, Position, Record, Scoring, Share
from probes.method import Aggregation as Aggregation  # a part of the manifest, with a file of its own
from probes.plan import Made

SCHEMA_VERSION: Final = 1

Statistic = Literal["final", "running_sup"]

ACTION = re.compile(r"observe|alert|stop|steer:[a-z0-9][a-z0-9._-]{0,63}(:[a-z0-9.+-]{1,16}){0,4}")
"""`steer:VECTOR[:SCALE][:WORD]...`, in the words of a request's `probewatch_steer`."""


class TokenMask(Record):
    """Which tokens of a conversation count towards the probe's statistic."""

    prompt: Literal["none", "all", "last_k"] = "none"
    """Prompt tokens that count."""
    last_k: Annotated[Position, Field(ge=1)] | None = None
    """How many tokens at the prompt's end count; set if and only if `prompt` is `last_k`."""
    generated: bool = True
    """Whether the answer's tokens count (the last sampled one has no residual and never does)."""
    skip_positions: Annotated[tuple[Position, ...], Field(max_length=4096)] = (0,)
    """Absolute 0-based positions that never count; position 0 is an attention sink."""

    @property
    def prompt_tail(self) -> int | None:
        """How many tokens at the prompt's end can count; None: any of them."""
        return None if self.prompt == "all" else self.last_k or 0

    @model_validator(mode="after")
    def _selects_something(self) -> Self:
        if (self.prompt == "last_k") != (self.last_k is not None):
            raise ValueError(
                f"last_k is {self.last_k} with prompt={self.prompt!r}; give it with 'last_k' alone"
            )
        if self.prompt == "none" and not self.generated:
            raise ValueError("the token mask selects no token; set prompt or generated")
        return self


class Quantiles(Record):
    """Quantile function of the deployed statistic on benign traffic."""

    probabilities: Annotated[tuple[Share, ...], Field(min_length=2, max_length=1001)]
    values: Annotated[tuple[Finite, ...], Field(min_length=2, max_length=1001)]

    @model_validator(mode="after")
    def _monotone(self) -> Self:
        p, v = self.probabilities, self.values
        if len(p) != len(v):
            raise ValueError(f"{len(p)} probabilities and {len(v)} values; give one value for each")
        if any(a >= b for a, b in pairwise(p)):
            raise ValueError("quantile probabilities do not increase strictly; sort them")
        if any(a > b for a, b in pairwise(v)):
            raise ValueError("quantile values decrease; sort them")
        return self

    def at(self, probability: float) -> float:
        """The value at `probability`, linear between the stored quantiles and flat beyond them."""
        p, v = self.probabilities, self.values
        if probability <= p[0]:
            return v[0]
        if probability >= p[-1]:
            return v[-1]
        i = bisect_left(p, probability)
        return v[i - 1] + (v[i] - v[i - 1]) * (probability - p[i - 1]) / (p[i] - p[i - 1])

    @property
    def iqr(self) -> float:
        """Distance between the quartiles: the unit of a request's margin."""
        return self.at(0.75) - self.at(0.25)

    def deciles(self) -> tuple[float, ...]:
        """The nine inner deciles: the bin edges of the population stability index (PSI)."""
        return tuple(self.at(i / 10) for i in range(1, 10))


class Calibration(Record):
    """Where the threshold comes from, and the false positives found on a second benign set."""

    nominal_fpr: Annotated[float, Field(gt=0.0, lt=1.0)]
    n: Annotated[Count, Field(ge=1)]
    """Benign conversations behind the threshold."""
    data_digest: Digest | None = None
    realised_n: Annotated[Count, Field(ge=1)] | None = None
    """Benign conversations of the second, disjoint set."""
    realised_false_positives: Count | None = None
    realised_ci: tuple[Share, Share] | None = None
    """95% Clopper-Pearson interval of the realised false-positive rate."""

    @model_validator(mode="after")
    def _second_set_is_whole(self) -> Self:
        found = (self.realised_n, self.realised_false_positives, self.realised_ci)
        if any(x is None for x in found) and any(x is not None for x in found):
            raise ValueError(
                "realised_n, realised_false_positives and realised_ci go together; give all or none"
            )
        return self

    @property
    def realised_fpr(self) -> float | None:
        """False positives over conversations of the second set, or None without one."""
        if self.realised_n is None or self.realised_false_positives is None:
            return None
        return self.realised_false_positives / self.realised_n


class ModelBinding(Record):
    """The model that the probe was trained and calibrated on (see `probes.identity`)."""

    model_id: Label
    config_digest: Digest
    chat_template_digest: Digest | None = None
    weights_digest: Digest | None = None
    adapter_digest: Digest | None = None
    """The LoRA adapter that the probe was trained with (`probes.identity.adapter_digest`). None: the model itself;
    a request with any adapter is then not scored."""


class TrainingData(Record):
    """The conversations that the probe was fitted to."""

    digest: Digest
    split: Label
    n_positive: Count
    n_negative: Count
    source: Annotated[str, Field(max_length=2000, pattern=r"^[^\x00-\x1f\x7f]*$")] = ""
    """One line: where they come from."""
    made: Made | None = None
    """How the probe was made, so that it can be made again; None where it was made otherwise."""


class ProbeManifest(Record):
    """Everything a server must know of a probe, and everything a reader may ask of it."""

    schema_version: Literal[1] = SCHEMA_VERSION
    name: Name
    version: Annotated[str, Field(pattern=r"^[0-9A-Za-z][0-9A-Za-z.+_-]{0,31}$")] = "1"
    kind: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
    """A name registered in `probes.kinds`."""
    concept: Label
    """What a high score means, in a word: `deception`, `being-audited` ..."""
    positive_label: Label
    negative_label: Label
    default_action: str
    """`observe`, `alert`, `stop` or `steer:VECTOR`."""
    layers: Annotated[tuple[Position, ...], Field(min_length=1, max_length=256)]
    """0-based block indices; the residual stream AFTER that block (Hugging Face `hidden_states[b + 1]`)."""
    last_block_verified: bool = False
    """True if the activations of the model's last block were taken before its final norm."""
    d_model: Annotated[int, Field(ge=1, le=1 << 20)]
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Precision of the residual stream that the probe was trained on; scoring is always float32."""
    scoring: Scoring = "logit"
    token_mask: TokenMask = TokenMask()
    aggregation: Aggregation = Aggregation()
    statistic: Statistic = "running_sup"
    """What is compared with the threshold: the last value, or the highest from `min_tokens` on."""
    threshold: Finite | None = None
    """Flagged when the statistic is strictly above it; None until calibrated."""
    calibration: Calibration | None = None
    benign_quantiles: Quantiles | None = None
    binding: ModelBinding | None = None
    """None: not bound to a model; readable, and refused when it is attached."""
    training: TrainingData | None = None
    metrics: dict[str, JsonValue] = Field(default_factory=dict)
    """Figures of the report card."""
    created_at: datetime
    tensors_sha256: Digest
    """Of the artifact's tensors, see `probes.artifact.tensors_digest`."""

    @property
    def nominal_fpr(self) -> float | None:
        """Share of benign traffic that the threshold was chosen to flag, or None while uncalibrated."""
        return None if self.calibration is None else self.calibration.nominal_fpr

    @property
    def statistic_digest(self) -> str:
        """SHA-256 of all that the deployed statistic depends on; scores with another one are not comparable."""
        decides = {"kind", "layers", "scoring", "token_mask", "aggregation", "statistic", "tensors_sha256"}
        told = self.model_dump(
            mode="json", include=decides, exclude_defaults=True
        )  # new fields keep old digests
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    @field_validator("layers")
    @classmethod
    def _layers_sorted_unique(cls, layers: tuple[int, ...]) -> tuple[int, ...]:
        if list(layers) != sorted(set(layers)):
            raise ValueError(f"layers {list(layers)} are not sorted and unique; give {sorted(set(layers))}")
        return layers

    @field_validator("default_action")
    @classmethod
    def _known_action(cls, action: str) -> str:
        if not ACTION.fullmatch(action):
            raise ValueError(
                f"action {action!r} is unknown; give observe, alert, stop or steer:VECTOR[:SCALE]"
            )
        return action

    @field_validator("metrics")
    @classmethod
    def _metrics_finite(cls, metrics: dict[str, JsonValue]) -> dict[str, JsonValue]:
        if not _all_finite(metrics):
            raise ValueError("metrics hold NaN or infinity; leave such a figure out")
        return metrics

    @field_validator("created_at")
    @classmethod
    def _aware(cls, moment: datetime) -> datetime:
        if moment.tzinfo is None:
            raise ValueError("created_at has no time zone; give UTC")
        return moment

    @model_validator(mode="after")
    def _can_act(self) -> Self:
        if self.default_action != "observe" and self.threshold is None:
            raise ValueError(
                f"action {self.default_action!r} without a threshold; calibrate the probe or observe"
            )
        return self


def default_action(concept: str) -> str:
    """The action of a calibrated probe for `concept`: deception alerts, any other concept observes."""
    return "alert" if concept == "deception" else "observe"


def parse(text: str | bytes) -> ProbeManifest:
    """The manifest in `text`, or `ManifestInvalid` naming the first field that is wrong."""
    try:
        return ProbeManifest.model_validate_json(text)
    except ValidationError as error:
        raise ManifestInvalid(_first_fault(error)) from None


def build(fields: Mapping[str, object]) -> ProbeManifest:
    """The manifest with `fields`, or `ManifestInvalid` naming the first field that is wrong."""
    try:
        return ProbeManifest.model_validate(dict(fields))
    except ValidationError as error:
        raise ManifestInvalid(_first_fault(error)) from None


def revise(manifest: ProbeManifest, **changes: object) -> ProbeManifest:
    """A copy of `manifest` with `changes`, validated like a new one (`model_copy` is not)."""
    return build({**{name: getattr(manifest, name) for name in ProbeManifest.model_fields}, **changes})


def _first_fault(error: ValidationError) -> str:
    fault = error.errors(include_url=False)[0]
    where = _shortened(".".join(str(part) for part in fault["loc"])) or "manifest"
    said, found = _shortened(fault["msg"], 300), _shortened(repr(fault["input"]))
    return f"manifest field {where}: {said} (found {found}); rewrite the artifact with a valid value"


def _shortened(text: str, limit: int = 80) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _all_finite(value: JsonValue) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(_all_finite(v) for v in value.values())
    if isinstance(value, list):
        return all(_all_finite(v) for v in value)
    return True
