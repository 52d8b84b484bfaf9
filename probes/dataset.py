"""Labelled conversations: one JSON object a line, ending with the assistant's answer.

    {"id": "c1", "messages": [{"role": "user", "content": ".."}, {"role": "assistant", "content": ".."}],
     "label": 1, "group": "Ashford", "family": "A", "template": "says", "condition": "incentivised",
     "split": "train"}

`group` is what must not stand on both sides of a split (an entity, an author, a source document). Further
keys are kept.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from probes.atomic import write_text
from probes.errors import DatasetInvalid, SplitLeak

Split = Literal["train", "validation", "test"]


class Message(BaseModel):
    """One turn of a chat."""

    model_config = ConfigDict(frozen=True)

    role: Literal["system", "user", "assistant", "tool"]
    content: str


class Conversation(BaseModel):
    """A chat whose last message is the answer to be judged."""

    model_config = ConfigDict(frozen=True, extra="allow")

    id: Annotated[str, Field(min_length=1)]
    messages: Annotated[tuple[Message, ...], Field(min_length=2)]
    label: Literal[0, 1] | None = None
    """1: the concept is present (a lie); 0: it is not; None: unlabelled."""
    group: str | None = None
    family: str | None = None
    template: str | None = None
    condition: str | None = None
    split: Split | None = None
    answer_ids: tuple[int, ...] | None = None
    """Token ids of the answer as they were sampled, the last one (never fed to the model) left out. Without
    them the answer's text is tokenised again, which may cut it differently.
    """

    @model_validator(mode="after")
    def _ends_with_an_answer(self) -> Self:
        if self.messages[-1].role != "assistant":
            raise ValueError(
                f"the last message is from {self.messages[-1].role!r}; end with the assistant's answer"
            )
        return self

    @property
    def prompt(self) -> list[dict[str, str]]:
        """The messages before the answer."""
        return [message.model_dump() for message in self.messages[:-1]]

    @property
    def answer(self) -> str:
        """The text of the answer."""
        return self.messages[-1].content

    @property
    def text(self) -> str:
        """The whole transcript as text: all that a text-only control may see."""
        return "\n".join(f"{message.role}: {message.content}" for message in self.messages)


def read(path: Path) -> list[Conversation]:
    """The conversations of a JSONL file. Raises `DatasetInvalid` that names the line."""
    try:
        lines = path.read_text("utf-8").split(
            "\n"
        )  # splitlines would cut at U+2028, which JSON may hold as it is
    except (OSError, ValueError) as error:
        raise DatasetInvalid(
            f"{path}: cannot be read ({' '.join(str(error).split())}); check the path"
        ) from None
    found = [_parse(line, f"{path} line {n}") for n, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise DatasetInvalid(f"{path}: 0 conversations; give one JSON object a line")
    repeated = len(found) - len({conversation.id for conversation in found})
    if repeated:
        raise DatasetInvalid(f"{path}: {repeated} ids occur again; give each conversation an id of its own")
    return found


def write(path: Path, conversations: Iterable[Conversation]) -> None:
    """Write conversations as JSONL, in one rename."""
    text = "".join(conversation.model_dump_json(exclude_none=True) + "\n" for conversation in conversations)
    write_text(path, text)


def of_split(conversations: Sequence[Conversation], split: Split) -> list[Conversation]:
    """Those of one split; `DatasetInvalid` where there is none."""
    found = [conversation for conversation in conversations if conversation.split == split]
    if not found:
        raise DatasetInvalid(
            f'0 of {len(conversations)} conversations have split {split!r}; set "split" on each line'
        )
    return found


def labels(conversations: Sequence[Conversation]) -> list[int]:
    """The labels. Raises `DatasetInvalid` where one is missing or only one class is there."""
    missing = [conversation.id for conversation in conversations if conversation.label is None]
    if missing:
        raise DatasetInvalid(
            f"{len(missing)} conversations without a label (first: {missing[0]!r}); label each 0 or 1"
        )
    found = [int(conversation.label or 0) for conversation in conversations]
    if len(set(found)) < 2:
        only = found[0] if found else "none"
        raise DatasetInvalid(f"all {len(found)} labels are {only}; give conversations of both classes")
    return found


def groups(conversations: Sequence[Conversation]) -> list[str]:
    """The group of each conversation; one without a group is a group of its own."""
    return [c.group if c.group is not None else f"id:{c.id}" for c in conversations]


def check_disjoint(**sides: Sequence[Conversation]) -> None:
    """Raise `SplitLeak` if a group occurs on two of the named sides; a chat without one is its own group."""
    seen: dict[str, str] = {}
    for side, conversations in sides.items():
        for group in sorted(set(groups(conversations))):
            if group in seen:
                raise SplitLeak(f"group {group!r} is in {seen[group]} and in {side}; split by group")
            seen[group] = side


def digest(conversations: Iterable[Conversation]) -> str:
    """SHA-256 over the conversations in the order of their ids."""
    found = hashlib.sha256()
    for conversation in sorted(conversations, key=lambda c: c.id):
        found.update(json.dumps(conversation.model_dump(mode="json"), sort_keys=True).encode())
    return found.hexdigest()


def _parse(line: str, where: str) -> Conversation:
    try:
        return Conversation.model_validate_json(line)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in fault["loc"]) or "line"
        raise DatasetInvalid(f"{where}: {field}: {fault['msg']}; mend the line") from None
