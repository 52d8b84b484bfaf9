"""EleutherAI's attention-probes: sum_h sum_t softmax_t(q_h . x) (v_h . x + b_h)."""

from collections.abc import Mapping

from probes.errors import MalformedArtifact, NotConvertible, TensorInvalid
from probes.importing.arrays import floats
from probes.importing.foreign import Foreign, Request
from probes.importing.pickles import load_torch
from probes.method import Aggregation


def is_attention_probe(found: object) -> bool:
    """A state_dict with queries and values."""
    return isinstance(found, Mapping) and {"q.weight", "v.weight"} <= found.keys()


def attention_probes(request: Request) -> Foreign:
    """A state_dict {q.weight [H, d], v.weight [H, d], v.bias [H], position_weight [H]}.

    Exact where the probe has one output, no net behind the attention and no weight on positions. A probe made with
    `use_tanh` looks the same in the file.
    """
    found = load_torch(request.path)
    if not isinstance(found, Mapping) or not is_attention_probe(found):
        raise MalformedArtifact(
            f"{request.path} has no q.weight and v.weight; give an attention probe's state_dict"
        )
    query, value = floats(found["q.weight"], "q.weight"), floats(found["v.weight"], "v.weight")
    if any(str(name).startswith("o.") for name in found):
        raise NotConvertible(
            "the probe has a net behind its attention (o.*); no kind here computes that exactly"
        )
    if query.ndim != 2 or value.ndim != 2 or query.shape[1] != value.shape[1]:
        raise TensorInvalid(
            f"q.weight {list(query.shape)} and v.weight {list(value.shape)}; give [H, d] both"
        )
    if len(query) != len(value):
        raise NotConvertible(
            f"{len(value)} values for {len(query)} heads: several outputs; train one probe for each"
        )
    position = floats(found.get("position_weight", 0.0), "position_weight")
    if position.any():
        raise NotConvertible(
            "position_weight is not zero: the probe weighs tokens by their place in a text, and no kind here does; "
            "train it without"
        )
    bias = floats(found.get("v.bias", 0.0), "v.bias")
    return Foreign(
        format="attention-probes",
        kind="attention",
        tensors={"query": query.T[None], "value": value.T[None], "bias": bias.sum()},
        layers=None,
        convention=None,
        concept=request.path.stem,
        aggregation=Aggregation(method="attention"),
        notes=("use_tanh is not stored in the file; the scores are right for a probe made without it",),
    )
