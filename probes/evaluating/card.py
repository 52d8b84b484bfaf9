"""What a report card holds: plain records, written as JSON beside the HTML.

A part that cannot be computed is a `NotComputed` with its reason and remedy, never an absent line. Shares and
AUROCs lie in [0, 1]; `None` in an interval means that the data cannot give one.
"""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict

from probes.estimate import Estimate

SCHEMA: Final = 1
NAMES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "entity-hash": "labels = hash of the group",
        "permuted-labels": "permuted training labels",
        "random-network": "randomly initialised network",
        "random-directions": "best of many random directions",
        "surprise": "token log-probability and entropy",
        "text-words": "text only: TF-IDF",
        "text-transformer": "text only: small transformer",
        "shared-transcripts": "transcripts in train and test",
        "score-filtering": "score filtering",
        "content-filtering": "content filtering",
    }
)
"""What the keys of controls and leakage tests stand for."""


def _finite(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


Number = Annotated[float | None, BeforeValidator(_finite)]
"""None where the figure cannot be given; NaN has no place in JSON."""


class Record(BaseModel):
    """A part of the card."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class NotComputed(Record):
    """A part that was not computed, said aloud."""

    reason: str
    remedy: str


class Figure(Record):
    """A value with its 95% interval."""

    value: Number
    low: Number = None
    high: Number = None

    @classmethod
    def of(cls, estimate: Estimate) -> "Figure":
        """From a bootstrap's estimate."""
        return cls(**estimate._asdict())


class Share(Record):
    """hits of n, with the exact 95% interval of Clopper and Pearson."""

    hits: int
    n: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """hits / n"""
        return self.hits / self.n


class Subject(Record):
    """The probe that was judged."""

    name: str
    kind: str
    concept: str
    positive_label: str
    negative_label: str
    layers: tuple[int, ...]
    tokens: str
    aggregation: str
    threshold: Number
    nominal_fpr: Number
    model_id: str
    digest: str


class Data(Record):
    """The conversations that it was judged on."""

    source: str
    digest: str
    test: tuple[int, int]
    """(positives, negatives)"""
    test_groups: int
    train: tuple[int, int]
    headline: str
    """The contrast that controls and gate refer to."""


class Contrast(Record):
    """Positives against one choice of negatives."""

    name: str
    n_positive: int
    n_negative: int
    auroc: Figure
    recall_1pct: Figure
    recall_01pct: Figure
    roc: tuple[tuple[float, float], ...]
    """(false-positive rate, recall), both ascending"""
    beside: Mapping[str, Figure]
    """AUROC of what sees the text alone, on the same conversations."""


class Precision(Record):
    """What a flag is worth where `base_rate` of the traffic holds the concept."""

    base_rate: float
    expected: Number
    pessimistic: Number
    """At the lower bound of recall and the upper bound of the false-positive rate."""


class Deployed(Record):
    """At the threshold in the artifact."""

    recall: Share
    false_positives: Share
    precision: tuple[Precision, ...]


class Bin(Record):
    """One bin of the reliability diagram."""

    predicted: float
    observed: Share


class Reliability(Record):
    """Are the probabilities right, once scores are mapped to them?"""

    brier: Figure
    brier_of_base_rate: float
    """Of always predicting the share of positives: a probe must be below it."""
    ece: Figure
    bins: tuple[Bin, ...]
    fitted_on: str


class Latency(Record):
    """Answer tokens that a positive had been given before its score first crossed the threshold."""

    caught_by: tuple[tuple[int, float], ...]
    """(answer tokens, share of positives caught by then)"""
    median: Number
    never: Share


class Profile(Record):
    """The same recipe fitted after each single block."""

    judged_on: str
    layers: tuple[tuple[int, float], ...]
    """(0-based block, AUROC)"""
    refits: tuple[float, ...]
    """AUROC of the probe's own setting, fitted to resampled training groups."""


class Slice(Record):
    """Conversations with one value of one field."""

    field: str
    value: str
    n_positive: int
    n_negative: int
    auroc: Number
    """Against the slice's own negatives, or all of the headline's where it has none."""
    own_negatives: bool
    recall: Share | None
    false_positives: Share | None


class Control(Record):
    """What must not do as well as the probe."""

    key: str
    """Names it for `--waive`."""
    name: str
    auroc: Figure
    detail: str
    succeeded: bool
    """True: it comes within the margin of the probe, so the probe has shown nothing."""


class Leak(Record):
    """The probe where the text has been made to say nothing, or where train and test meet."""

    key: str
    name: str
    auroc: Figure | None
    n_positive: int
    n_negative: int
    detail: str
    failed: bool


class Effect(Record):
    """One intervention on the residual stream and how often the model then shows the behaviour."""

    intervention: str
    along: Literal["none", "probe", "class means", "random"]
    turned_off: Share
    """Of the prompts at which it shows the behaviour by itself: answers that now show the opposite."""
    turned_on: Share
    """Of the prompts at which it shows the opposite by itself: answers that now show the behaviour."""
    broken: Share
    """Of all prompts: answers that show neither, for the model no longer speaks sense."""


class Causal(Record):
    """Does the model use what the probe reads?"""

    effects: tuple[Effect, ...]
    verdict: str


class Condition(Record):
    """The probe under conditions it was not fitted to."""

    name: str
    detail: str
    n_positive: int
    n_negative: int
    auroc: Figure
    recall: Share | None
    false_positives: Share | None


class Attack(Record):
    """Words appended to the prompt, found by gradient to hide the concept from the probe."""

    suffix: str
    steps: int
    n: int
    recall_before: Share
    recall_random: Share
    """With as many random words appended."""
    recall_after: Share
    behaviour_after: Share | None
    """Answers that still show the behaviour under the suffix; None without markers in the data."""


class Fault(Record):
    """A reason for `--gate` to fail."""

    key: str
    text: str


class Card(Record):
    """The whole report."""

    schema_version: int = SCHEMA
    subject: Subject
    data: Data
    contrasts: tuple[Contrast, ...]
    deployed: Deployed | NotComputed
    reliability: Reliability | NotComputed
    latency: Latency | NotComputed
    profile: Profile | NotComputed
    slices: tuple[Slice, ...]
    controls: tuple[Control, ...]
    not_computed: Mapping[str, NotComputed]
    """Controls and leakage tests that could not be computed, by key."""
    leaks: tuple[Leak, ...]
    causal: Causal | NotComputed
    stress: tuple[Condition, ...] | NotComputed
    attack: Attack | NotComputed
    margin: float
    waived: tuple[str, ...] = ()
    faults: tuple[Fault, ...] = ()
    seconds: Mapping[str, float]
    """What each part took."""
    command: str
    version: str
    created_at: str

    @property
    def headline(self) -> Contrast:
        """The contrast that controls and gate refer to."""
        return next(found for found in self.contrasts if found.name == self.data.headline)
