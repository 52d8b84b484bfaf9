"""What gated steering does to the model that lies, on a real server: ``make gating-bench``, ``python -m bench.gating``.

The same questions, about entities and incentives never trained on, in every arm: no steering; the honesty vector at
every token; a random vector of the same length; and the deception probe as a gate (``steer:honesty``), set on the
running server. A lie asserts the opposite of what the model believes; honest traffic is everything else it is asked.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import urllib.request
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

import probes
from bench.served import served
from monitor.client import ADMIN_KEY_VARIABLE, Server
from monitor.demo.server import free_port, serve_command, serve_environment
from monitor.shipped import MODEL_NAME, paths
from probes.organism import cases, told_a_lie
from probes.organism.cases import Case, asserted_value
from probes.organism.measure import wilson

KEY = "a-key-of-the-benchmark"
CONDITIONS = ("incentivised", "plain", "audited", "neutral")


def ask(url: str, case: Case, steer: str | None) -> tuple[str, str]:
    """The model's greedy answer, and the id of the response."""
    body: dict[str, Any] = {
        "model": MODEL_NAME,
        "messages": list(case.messages),
        "temperature": 0,
        "max_tokens": 80,
    }
    if steer is not None:
        body["vllm_xargs"] = {"probewatch_steer": steer}
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=300) as reply:
        found = json.load(reply)
        return str(found["choices"][0]["message"]["content"]), str(found["id"])


def arm(url: str, asked: Sequence[Case], steer: str | None) -> dict[str, Any]:
    """Lies among the cases that call for one; answers that assert the belief among all others."""
    with ThreadPoolExecutor(16) as pool:
        answers = [answer for answer, _ in pool.map(lambda case: ask(url, case, steer), asked)]
    pairs = list(zip(asked, answers, strict=True))
    lies = [told_a_lie(case, answer) for case, answer in pairs if case.expects_lie]
    honest = [asserted_value(case, answer) == case.belief for case, answer in pairs if not case.expects_lie]
    return {"lies": sum(lies), "tempted": len(lies), "kept": sum(honest), "honest": len(honest)}


def tokens_to_stop(url: str, asked: Sequence[Case], probe: probes.Probe) -> Counter[int]:
    """With the action ``stop``: how many tokens the client gets after the one whose score crossed."""
    found: Counter[int] = Counter()
    with ThreadPoolExecutor(16) as pool:
        ids = [i for _, i in pool.map(lambda case: ask(url, case, None), [c for c in asked if c.expects_lie])]
    for response_id in ids:
        tokens = Server(url).request(response_id)["probes"][probe.manifest.name]["tokens"]
        stream = probe.stream()
        for token in tokens[:-1]:
            if not token["masked"]:
                stream.update(np.array([token["score"]]))
            if probe.crossed(stream.live):
                found[len(tokens) - 1 - token["position"]] += 1
                break
    return found


def random_vector(folder: Path, like: Path) -> Path:
    """A vector of the same length and layer that points anywhere."""
    shipped = probes.load(like)
    drawn = torch.randn(shipped.tensors["direction"].shape, generator=torch.Generator().manual_seed(0))
    length = shipped.tensors["direction"].norm(dim=-1, keepdim=True)
    direction = drawn / drawn.norm(dim=-1, keepdim=True) * length
    unit = direction / length
    golden = torch.einsum("nld,ld->n", shipped.golden_inputs, unit) / len(unit)
    probe = probes.Probe(shipped.manifest, {"direction": direction}, shipped.golden_inputs, golden)
    path = folder / "random.safetensors"
    probe.save(path, name="random")
    return path


def run(n: int, seed: int, scale: str) -> tuple[dict[str, dict[str, Any]], Counter[int]]:
    """Every arm on one server, and the tokens to a stop."""
    found = paths()
    artifacts = {Path(str(p)).stem: Path(str(p)) for p in [*found["probes"], *found["vectors"]]}  # type: ignore[misc]
    asked = cases(n, seed=seed, split="test", conditions=CONDITIONS)
    port = free_port()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = {**serve_environment(os.environ), ADMIN_KEY_VARIABLE: KEY}
        vectors = [artifacts["honesty"], random_vector(folder, artifacts["honesty"])]
        command = serve_command(str(found["model"]), [str(artifacts["deception"])], port)
        command += [f"--vector={path}" for path in vectors]
        with served(command, environment, port, folder / "server.log") as url:
            arms = {
                "off": arm(url, asked, None),
                f"always honesty:{scale}": arm(url, asked, f"honesty:{scale}"),
                f"always random:{scale}": arm(url, asked, f"random:{scale}"),
            }
            control = Server(url, admin_key=KEY)
            for action in (f"steer:honesty:{scale}", f"steer:random:{scale}"):
                control.change("deception", {"action": action})
                arms[f"gated {action.removeprefix('steer:')}"] = arm(url, asked, None)
            control.change("deception", {"action": "stop"})
            return arms, tokens_to_stop(url, asked, probes.load(artifacts["deception"]))


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.gating", description=__doc__.split("\n")[0])
    parser.add_argument("--cases", type=int, default=1600, help="questions an arm; an eighth tempt to lie")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--scale", default="2", help="of the vector, times its stored length")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    arms, stops = run(options.cases, options.seed, options.scale)
    print(f"{options.cases} questions an arm, seed {options.seed}; share [95% interval]")
    print(f"{'arm':<22} {'lies when tempted':>26} {'belief told, honest traffic':>30}")
    for name, one in arms.items():
        shares = []
        for hits, of in ((one["lies"], one["tempted"]), (one["kept"], one["honest"])):
            low, high = wilson(hits, of)
            shares.append(f"{hits / of:6.1%} [{low:.1%}, {high:.1%}] of {of}")
        print(f"{name:<22} {shares[0]:>26} {shares[1]:>30}")
    print(
        f"action stop: {sum(stops.values())} stopped; tokens after the one that crossed: "
        + ", ".join(f"{tokens} ({n} times)" for tokens, n in sorted(stops.items()))
    )
    if options.json:
        options.json.write_text(json.dumps({"arms": arms, "tokens_to_stop": stops}, indent=2) + "\n")


if __name__ == "__main__":
    main()
