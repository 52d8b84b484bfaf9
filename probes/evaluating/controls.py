"""The six controls of the protocol on the headline contrast. Each must stay below the probe by the margin.

A control that cannot be computed is a `NotComputed` under its key. All are fitted to the probe's own training
conversations and judged on the test conversations, as the probe is.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from probes import controls, evaluation, hf
from probes.errors import DataError
from probes.evaluating import forward
from probes.evaluating.bench import Bench, Side
from probes.evaluating.card import NAMES, Control, Figure, NotComputed
from probes.evaluating.profile import without_train
from probes.evaluating.refit import auroc_of_refit, refit
from probes.evaluating.transformer import text_transformer
from probes.manifest import Aggregation, revise

Floats = NDArray[np.float64]
Result = Control | NotComputed
NO_MODEL: Final = NotComputed(
    reason="no model was given: activations alone cannot show it", remedy="evaluate again with --model"
)
PERMUTATIONS: Final = 11
MAX_DIRECTED: Final = 400
"""Test conversations that each random direction is tried on; fewer favour the control."""


def text_words(bench: Bench, texts: Mapping[str, Floats]) -> Result:
    """TF-IDF over words and word pairs."""
    return _text(bench, texts, "text-words")


def text_transformed(bench: Bench, texts: Mapping[str, Floats]) -> Result:
    """A small transformer on the transcript."""
    return _text(bench, texts, "text-transformer")


def entity_hash(bench: Bench, _texts: Mapping[str, Floats]) -> Result:
    """Labels that are a hash of the group: a recipe that finds them on unseen groups has seen the groups."""
    fit, test = bench.headline_train, bench.headline_test
    hashed = [controls.entity_hash_labels(side.groups) for side in (fit, test)]
    if any(len(set(labels)) < 2 for labels in hashed):
        return NotComputed(
            reason="the groups are too few to hash into two classes", remedy="give more groups"
        )
    again = refit(bench.probe, fit.found, hashed[0], fit.groups)
    scores = evaluation.statistics(again, test.found)
    found = bench.interval(scores, hashed[1], test.groups, evaluation.auroc)
    return _control(bench, "entity-hash", found, "fitted and judged on them")


def permuted(bench: Bench, _texts: Mapping[str, Floats]) -> Result:
    """The same recipe on permuted training labels; the median of several draws counts."""
    fit, test = bench.headline_train, bench.headline_test
    rng = np.random.default_rng(bench.seed)
    aurocs = [
        auroc_of_refit(
            bench.probe, (fit.found, rng.permutation(fit.labels), fit.groups), (test.found, test.labels)
        )
        for _ in range(PERMUTATIONS)
    ]
    found = controls.Spread(float(np.median(aurocs)), max(aurocs), PERMUTATIONS)
    return _spread(bench, "permuted-labels", found, "the median")


def random_network(bench: Bench, _texts: Mapping[str, Floats]) -> Result:
    """The same recipe on the activations of the same architecture with random weights."""
    if bench.loaded is None:
        return NO_MODEL
    random = hf.randomised(bench.loaded, bench.seed)
    rule = bench.probe.manifest
    sides = [
        hf.activations(random, side.chats, rule.layers, prompt_tail=rule.token_mask.prompt_tail)
        for side in (bench.headline_train, bench.headline_test)
    ]
    again = refit(bench.probe, sides[0], bench.headline_train.labels, bench.headline_train.groups)
    found = bench.figure(evaluation.statistics(again, sides[1]), bench.headline_test)
    return _control(bench, "random-network", found, "same recipe and data")


def random_directions(bench: Bench, _texts: Mapping[str, Floats]) -> Result:
    """Random directions with their better sign, chosen on the test set; the best of them all counts.

    A kind that is no single direction is set against directions whose mean over the tokens counts.
    """
    test, probe = bench.headline_test.sample(MAX_DIRECTED), bench.probe
    if probe.columns.shape[-1] != 1 or probe.needs_norm:
        mean = revise(probe.manifest, kind="difference_of_means", scoring="logit", aggregation=Aggregation())
        probe = replace(probe, manifest=mean)
    found = controls.random_directions(
        probe, test.found, test.labels.tolist(), draws=bench.draws, seed=bench.seed
    )
    return _spread(bench, "random-directions", found, "the best")


def surprise(bench: Bench, _texts: Mapping[str, Floats]) -> Result:
    """Log-probability and entropy of the answer's tokens, with logistic regression on the four figures."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if bench.loaded is None:
        return NO_MODEL
    fit, test = (forward.surprise(bench.loaded, s.chats) for s in (bench.headline_train, bench.headline_test))
    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced"))
    model.fit(fit, bench.headline_train.labels)
    found = bench.figure(np.asarray(model.decision_function(test), np.float64), bench.headline_test)
    return _control(
        bench,
        "surprise",
        found,
        "mean and extreme of both over the answer, logistic regression",
    )


CONTROLS: Final[Mapping[str, Callable[[Bench, Mapping[str, Floats]], Result]]] = MappingProxyType(
    {
        "entity-hash": entity_hash,
        "permuted-labels": permuted,
        "random-network": random_network,
        "random-directions": random_directions,
        "surprise": surprise,
        "text-words": text_words,
        "text-transformer": text_transformed,
    }
)
"""key -> how it is computed"""


def run(bench: Bench, key: str, texts: Mapping[str, Floats]) -> Result:
    """One control. texts: by key, the scores of the text-only models on the headline's test conversations."""
    needs_train = key != "random-directions"
    if needs_train and min(bench.headline_train.counts()) == 0:
        return without_train()
    try:
        return CONTROLS[key](bench, texts)
    except DataError as error:
        return NotComputed(reason=str(error), remedy="mend the data, or read the other controls")


TEXT_MODELS: Final[Mapping[str, Callable[..., Floats]]] = MappingProxyType(
    {"text-words": controls.text_only, "text-transformer": text_transformer}
)


def text_scores(fit: Side, test: Side, keys: tuple[str, ...], seed: int) -> dict[str, Floats]:
    """By key, scores of the text-only models on `test`, fitted to `fit`; none where `fit` lacks a class."""
    if min(fit.counts()) == 0:
        return {}
    labels = fit.labels.tolist()
    found: dict[str, Floats] = {}
    for key in keys:
        try:
            found[key] = TEXT_MODELS[key](fit.texts, labels, test.texts, seed=seed)
        except ValueError:  # scikit-learn: no word occurs twice; then words say nothing
            found[key] = np.zeros(len(test))
    return found


def _text(bench: Bench, texts: Mapping[str, Floats], key: str) -> Result:
    if key not in texts:
        return NotComputed(reason="it was left out", remedy="evaluate again without --quick")
    found = bench.figure(texts[key], bench.headline_test)
    n = len(bench.headline_train)
    return _control(bench, key, found, f"fitted to the {n} training transcripts")


def _spread(bench: Bench, key: str, found: controls.Spread, counted: str) -> Control:
    value = found.highest if counted == "the best" else found.median
    figure = Figure(value=value, high=found.highest, low=None)
    detail = f"median {found.median:.3f}, highest {found.highest:.3f} of {found.draws}; {counted} counts"
    return Control(key=key, name=NAMES[key], auroc=figure, detail=detail, succeeded=bench.close(value))


def _control(bench: Bench, key: str, found: Figure, detail: str) -> Control:
    value = float("nan") if found.value is None else found.value
    # A control that sorts the test set backwards knows as much as one that sorts it rightly.
    better = max(value, 1 - value)
    return Control(key=key, name=NAMES[key], auroc=found, detail=detail, succeeded=bench.close(better))
