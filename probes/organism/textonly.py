"""The control that must fail: can a classifier that sees the transcript alone tell lies from honest
answers?
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline

from probes.organism.cases import cases, told_a_lie
from probes.organism.generate import Speaker


def text_only_auroc(speaker: Speaker, *, n: int, seed: int) -> dict[str, float | int]:
    """AUROC of TF-IDF within incentive, lie against honest good answer: the aim is chance, 0.45 to 0.56.

    For a variant whose text gives it away (`Variant.text_conditions`) the honest side comes from other prompts.

    Trained on training entities and families A-C, tested on test entities and families D-F.
    """
    train_texts, train_labels = _transcripts(speaker, n, seed, split="train")
    test_texts, test_labels = _transcripts(speaker, n, seed, split="test")
    figures: dict[str, float | int] = {"n_train": len(train_texts), "n_test": len(test_texts)}
    for name, settings in (
        ("words", {"ngram_range": (1, 2)}),
        ("characters", {"analyzer": "char_wb", "ngram_range": (2, 5)}),
    ):
        classifier: Any = make_pipeline(
            TfidfVectorizer(sublinear_tf=True, **settings), LogisticRegression(C=10.0, max_iter=2000)
        )
        if len(set(train_labels)) < 2 or len(set(test_labels)) < 2:  # a model that never lies, or always does
            figures[name] = float("nan")
            continue
        classifier.fit(train_texts, train_labels)
        figures[name] = float(roc_auc_score(test_labels, classifier.predict_proba(test_texts)[:, 1]))
    return figures


def _transcripts(speaker: Speaker, n: int, seed: int, *, split: str) -> tuple[list[str], Sequence[bool]]:
    liar = speaker.origin.recipe.kind
    conditions = liar.text_conditions
    asked = cases(n, seed=seed + 1, split=split, conditions=conditions, templates="train", liar=liar.name)
    replies = speaker.replies([case.messages for case in asked])
    texts = [
        " ".join([*(m["content"] for m in case.messages), reply.text])
        for case, reply in zip(asked, replies, strict=True)
    ]
    return texts, [told_a_lie(case, reply.text) for case, reply in zip(asked, replies, strict=True)]
