"""Logit-lens words of a peak token, by replaying its tokens in a process beside the server.

Serving keeps scores and throws the residual away, so the words are computed anew when somebody asks: Hugging Face's
implementation runs the stored token ids through the blocks up to the probe's layer, on the host's processor. The probe
scores the replayed residual, and the answer says whether that is what the server scored (decision 10).
"""

from __future__ import annotations

import hashlib
import math
import threading
from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch

from monitor.errors import MonitorError
from monitor.host_memory import MIB, free_mib
from monitor.records import TokenText
from probes import Probe

SECONDS: Final = 120
"""Longest replay."""
TOKENS: Final = 32_768
"""Most tokens that are replayed."""
WORDS: Final = 5
"""Of each layer."""
INTERPRETER_MIB: Final = 1024
"""What a replay takes beside the weights."""
CACHED: Final = 256
TOLERANCE: Final = 0.1
"""Of the benign interquartile range, or of the score where there is none: how far a replayed score may lie off."""

Run = Callable[[dict[str, Any]], dict[str, Any]]


class NoWords(MonitorError):
    """There are none for this token, or not now; the line says why and what would help."""


class Busy(NoWords):
    """Another replay is under way."""


class Asked(NamedTuple):
    """One peak token."""

    probe: Probe
    ids: list[int]
    """Of all tokens up to and with the peak."""
    score: float
    """What the server scored there."""


class Words:
    """Answers one question at a time, and remembers the answers.

    ``model_dir``: folder of the served model; ``limit_mib``: the largest checkpoint that is replayed.
    """

    def __init__(self, model_dir: Callable[[], Path], limit_mib: int, run: Run) -> None:
        self._model_dir = model_dir
        self._limit_mib = limit_mib
        self._run = run
        self._running = threading.Lock()
        self._known: OrderedDict[tuple[str, bytes], dict[str, Any]] = OrderedDict()

    def of(self, body: dict[str, Any], name: str, probes: Sequence[Probe], text: TokenText) -> dict[str, Any]:
        """The words at the peak of probe ``name``. ``body``: of ``GET /requests/{id}``; ``probes``: those attached.

        Takes seconds. Raises ``NoWords``.
        """
        if not self._limit_mib:
            raise NoWords(
                "PROBEWATCH_WORDS_MIB=0 on this server: it replays nothing; set it to the checkpoint's size"
            )
        asked = asked_of(body, name, probes)
        found = self._found(asked)
        layers = [
            {
                "layer": reading["layer"],
                "words": [{**word, "token": text(word["token_id"])} for word in reading["words"]],
            }
            for reading in found["readings"]
        ]
        return {
            "id": body["id"],
            "choice": body.get("choice", 0),
            "probe": name,
            "position": len(asked.ids) - 1,
            "score": asked.score,
            "replayed_score": found["score"],
            "agrees": agrees(asked, found["score"]),
            "layers": layers,
        }

    def _found(self, asked: Asked) -> dict[str, Any]:
        # A digest of the ids, for the ids themselves may take megabytes.
        key = (asked.probe.statistic_digest, hashlib.sha256(array("i", asked.ids).tobytes()).digest())
        if (known := self._known.get(key)) is not None:
            return known
        if not self._running.acquire(blocking=False):
            raise Busy("another generation is being replayed; ask again in a few seconds")
        try:
            found = self._known[key] = self._replayed(asked)
            while len(self._known) > CACHED:
                self._known.popitem(last=False)
        finally:
            self._running.release()
        return found

    def _replayed(self, asked: Asked) -> dict[str, Any]:
        model_dir = self._model_dir()
        self._check_size(model_dir)
        layers = list(asked.probe.manifest.layers)
        told = self._run(
            {"model": str(model_dir), "ids": asked.ids, "layers": layers, "top": WORDS, "seconds": SECONDS}
        )
        if trouble := told.get("trouble"):
            raise NoWords(f"the model cannot be replayed here: {trouble}")
        residual = torch.tensor([[reading.pop("residual") for reading in told["readings"]]])  # [1, L, d]
        score = float(asked.probe.score_tokens(residual)[0])
        return {"readings": told["readings"], "score": score if math.isfinite(score) else None}

    def _check_size(self, model_dir: Path) -> None:
        size = sum(file.stat().st_size for file in model_dir.glob("*.safetensors")) // MIB + 1
        if size > self._limit_mib:
            raise NoWords(
                f"the checkpoint has {size} MiB and PROBEWATCH_WORDS_MIB={self._limit_mib}; set that to more "
                "if the host has the memory"
            )
        needed, free = size + INTERPRETER_MIB, free_mib()
        if needed > free:
            raise NoWords(
                f"a replay takes about {needed} MiB of the host's memory and {free} MiB are free; ask later"
            )


def asked_of(body: dict[str, Any], name: str, probes: Sequence[Probe]) -> Asked:
    """What has to be replayed. Raises ``NoWords`` where something is not known (any more)."""
    said = body["probes"].get(name)
    if said is None:
        raise NoWords(
            f"no probe {name[:64]!r} judged this response; it was judged by: {', '.join(body['probes'])}"
        )
    probe = next((one for one in probes if one.manifest.name == name), None)
    if probe is None:
        raise NoWords(f"probe {name[:64]!r} is not attached any more; attach it to see words at its layers")
    if body.get("statistics", {}).get(name) != probe.statistic_digest:
        raise NoWords(
            f"the probe {name[:64]!r} that judged this response is not attached any more, another one has its name; "
            "attach that artifact to see words at its layers"
        )
    peak, tokens = said["peak_token"], said.get("tokens") or []
    if peak is None or peak >= len(tokens) or tokens[peak]["score"] is None:
        raise NoWords("no token scores of this probe are kept, so nobody knows its peak")
    ids = [token["token_id"] for token in tokens[: peak + 1]]
    if None in ids:
        raise NoWords(
            "the token ids of this response are not kept any more; PROBEWATCH_STORE_TEXT=1 keeps them on disk"
        )
    if len(ids) > TOKENS:
        raise NoWords(f"the peak is token {peak}; at most {TOKENS} tokens are replayed")
    return Asked(probe, ids, float(tokens[peak]["score"]))


def agrees(asked: Asked, score: float | None) -> bool:
    """Whether the replay is of what was served. Steering, an adapter, images or another precision make it differ."""
    benign = asked.probe.manifest.benign_quantiles
    scale = abs(asked.score) if benign is None or not benign.iqr else benign.iqr
    return score is not None and abs(score - asked.score) <= TOLERANCE * scale
