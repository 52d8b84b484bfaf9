"""Writes the fixtures of this folder with the real libraries: `python make.py LIBRARY`.

LIBRARY: repeng, steering-vectors, sae-lens or sklearn. Run each in an
environment that has the library; README.md says which versions wrote what is here.
"""

import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
D, N = 6, 5
RNG = np.random.default_rng(7)
X = RNG.normal(size=(40, D)) * 3 + 1
Y = (X[:, 0] - X[:, 1] + RNG.normal(size=40) > 0).astype(int)
INPUTS = RNG.normal(size=(N, D))


def answers(name: str, **found: Any) -> None:
    """What the library itself computes from `INPUTS`."""
    said = {key: np.asarray(value).tolist() for key, value in {"inputs": INPUTS, **found}.items()}
    (HERE / f"{name}.json").write_text(json.dumps(said))


def repeng() -> None:
    from repeng import ControlVector

    directions = {layer: RNG.normal(size=D).astype(np.float32) for layer in (1, 2, 3)}
    ControlVector(model_type="llama", directions=directions).export_gguf(HERE / "repeng.gguf")
    answers("repeng", directions=[directions[n] for n in (1, 2, 3)])


def steering_vectors() -> None:
    import torch
    from steering_vectors import SteeringVector

    activations = {layer: torch.tensor(RNG.normal(size=D), dtype=torch.float32) for layer in (0, 2)}
    torch.save(SteeringVector(activations), HERE / "steering_vector.pt")
    answers("steering_vector", directions=[activations[n].numpy() for n in (0, 2)])


def sae_lens() -> None:
    import torch
    from sae_lens import JumpReLUSAE, JumpReLUSAEConfig, StandardSAE, StandardSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    torch.manual_seed(0)
    for name, kind, config, hook in (
        ("sae_standard", StandardSAE, StandardSAEConfig, "blocks.3.hook_resid_post"),
        ("sae_jumprelu", JumpReLUSAE, JumpReLUSAEConfig, "blocks.3.hook_resid_pre"),
    ):
        sae = kind(config(d_in=D, d_sae=9, metadata=SAEMetadata(hook_name=hook, model_name="gpt2")))
        with torch.no_grad():
            sae.b_enc.normal_()
            sae.b_dec.normal_()
            if hasattr(sae, "threshold"):
                sae.threshold.uniform_(-0.2, 1.0)
            sae.save_model(HERE / name)
            answers(name, features=sae.encode(torch.tensor(INPUTS, dtype=torch.float32)).numpy())


def sklearn() -> None:
    import joblib
    from sklearn.linear_model import LogisticRegression, LogisticRegressionCV, Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    pipeline = make_pipeline(StandardScaler(), LogisticRegression()).fit(X, Y)
    joblib.dump(pipeline, HERE / "pipeline.joblib")
    joblib.dump(pipeline, HERE / "pipeline_compressed.joblib", compress=3)
    for protocol in (2, 5):
        (HERE / f"pipeline_{protocol}.pkl").write_bytes(pickle.dumps(pipeline, protocol=protocol))
    ridge = Ridge().fit(X, X @ np.arange(D))
    joblib.dump(ridge, HERE / "ridge.joblib")
    three = LogisticRegression().fit(X, Y + (X[:, 2] > 2))
    joblib.dump(three, HERE / "three.joblib")
    # Labels of text, and attributes that are arrays of objects.
    words = LogisticRegressionCV(cv=2, Cs=2).fit(X, np.where(Y, "lie", "honest"))
    joblib.dump(words, HERE / "words.joblib")
    answers(
        "sklearn",
        pipeline=pipeline.decision_function(INPUTS),
        ridge=ridge.predict(INPUTS),
        three=three.decision_function(INPUTS),
        words=words.decision_function(INPUTS),
    )


WRITERS: dict[str, Callable[[], None]] = {
    "repeng": repeng,
    "steering-vectors": steering_vectors,
    "sae-lens": sae_lens,
    "sklearn": sklearn,
}

if __name__ == "__main__":
    WRITERS[sys.argv[1]]()
