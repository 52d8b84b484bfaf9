"""Several probes as one: their states one after the other, their values in a weighted sum (`members`).

Tensors of member i are named `i.NAME`. The score shown for a token is the same weighted sum of the members' token
scores. A member reads its own layers alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from probes.kinds.record import Kind, Shape, Tensors, state_width
from probes.method import Member

_WIDTH: Final = "columns"
"""Among the constants: how many columns a member has."""

MOST_NUMBERS: Final = 1 << 26
"""In the columns of an ensemble: a small file must not ask for much memory."""


@dataclass(frozen=True)
class _Part:
    prefix: str
    kind: Kind
    rows: list[int]
    """Index among the ensemble's layers of each layer it reads."""
    member: Member

    def own(self, tensors: Tensors) -> dict[str, Tensor]:
        """Those with the prefix, without it."""
        start = len(self.prefix)
        return {name[start:]: tensor for name, tensor in tensors.items() if name.startswith(self.prefix)}


def ensemble(members: Sequence[Member], layers: Sequence[int], kind_of: Callable[[Member], Kind]) -> Kind:
    """The kind of an ensemble over `layers`. `kind_of` may raise for a member of an unknown kind."""
    parts = [
        _Part(f"{i}.", kind_of(member), [layers.index(layer) for layer in member.layers], member)
        for i, member in enumerate(members)
    ]

    def columns(tensors: Tensors) -> Tensor:
        found = []
        for part in parts:
            own = part.kind.columns(part.own(tensors))  # [l, d, c]
            wide = torch.zeros(len(layers), *own.shape[1:])
            wide[part.rows] = own.float()
            found.append(wide)
        return torch.cat(found, dim=-1)

    def constants(tensors: Tensors) -> Tensors:
        found = {}
        for part in parts:
            own = part.own(tensors)
            width = part.kind.columns(own).shape[2]
            known = {**part.kind.constants(own), _WIDTH: torch.tensor(width)}
            found.update({part.prefix + name: tensor for name, tensor in known.items()})
        return found

    def state(projections: Tensor, squared_norms: Tensor | None, known: Tensors) -> Tensor:
        found, at = [], 0
        for part in parts:
            own = part.own(known)
            width = int(own[_WIDTH])
            norms = None if squared_norms is None else squared_norms[:, part.rows]
            found.append(part.kind.state(projections[:, part.rows, at : at + width], norms, own))
            at += width
        return torch.cat(found, dim=1)

    def token_score(state: Tensor) -> Tensor:
        own = state.split([part.member.states for part in parts], dim=1)
        scores = [p.member.weight * p.kind.token_score(s) for p, s in zip(parts, own, strict=True)]
        return torch.stack(scores).sum(dim=0)

    return Kind(
        shapes=_shapes(parts),
        columns=columns,
        state=state,
        token_score=token_score,
        constants=constants,
        needs_norm=any(part.kind.needs_norm for part in parts),
        aggregations=frozenset({"members"}),
        fault=lambda tensors: _fault(parts, len(layers), tensors),
    )


def _fault(parts: Sequence[_Part], n_layers: int, tensors: Tensors) -> str | None:
    numbers = 0
    for part in parts:
        own = part.own(tensors)
        found = part.kind.fault(own)
        if found is not None:
            return f"member {part.prefix[:-1]}: {found}"
        states = state_width(part.kind, own)
        if states != part.member.states:
            declared = f"member {part.prefix[:-1]} declares {part.member.states} states"
            return f"{declared}, its tensors give {states}; correct the manifest"
        _, width, columns = part.kind.columns(own).shape
        numbers += n_layers * width * columns
    if numbers > MOST_NUMBERS:
        return f"the members' columns are {numbers} numbers over all layers, the limit is {MOST_NUMBERS}; give fewer"
    return None


def _shapes(parts: Sequence[_Part]) -> Mapping[str, Shape]:
    def renamed(part: _Part, shape: Shape) -> Shape:
        own: dict[str, int | str] = {"L": len(part.rows), "d": "d"}
        return tuple(s if isinstance(s, int) else own.get(s, part.prefix + s) for s in shape)

    return {
        part.prefix + name: renamed(part, shape) for part in parts for name, shape in part.kind.shapes.items()
    }
