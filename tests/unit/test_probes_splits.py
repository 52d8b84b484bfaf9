"""Splits by group: dealt alike, the same for a seed, and refused where they leak."""

from collections import Counter

import pytest

import probes
from probes import dataset, splits
from probes.dataset import Conversation
from probes.manifest import TrainingData
from probes.plan import Chosen, Made, Plan
from probes.testing import fake_manifest


def chat(n: int, **fields: object) -> Conversation:
    turns = [
        {"role": "user", "content": f"question {n}"},
        {"role": "assistant", "content": f"an answer to question {n}"},
    ]
    return Conversation.model_validate({"id": f"c{n}", "messages": turns, "label": n % 2, **fields})


def told(name: str, answer: str, **fields: object) -> Conversation:
    turns = [{"role": "user", "content": "how"}, {"role": "assistant", "content": answer}]
    return Conversation.model_validate({"id": name, "messages": turns, **fields})


def test_whole_groups_are_dealt_in_the_shares() -> None:
    chats = [chat(n, group=f"g{n // 4}") for n in range(400)]
    found = splits.sides(chats, seed=0)
    assert [len(side) for side in (found.train, found.validation, found.test)] == [240, 80, 80]
    assert len({(c.group, c.split) for c in (*found.train, *found.validation, *found.test)}) == 100
    assert found.rule == "groups dealt 60%/20%/20%, seed 0"


def test_each_mix_of_labels_is_dealt_alike() -> None:
    # Groups of one label each, one in ten positive: a deal that ignored labels would often leave a side without.
    chats = [chat(n, group=f"g{n}", label=int(n % 10 == 0)) for n in range(100)]
    found = splits.sides(chats, seed=3)
    positives = [sum(c.label or 0 for c in side) for side in (found.train, found.validation, found.test)]
    assert positives == [6, 2, 2]


def test_a_seed_decides_and_the_order_of_lines_does_not() -> None:
    chats = [chat(n, group=f"g{n // 2}") for n in range(60)]
    one, again = splits.deal(chats, seed=1), splits.deal(chats[::-1], seed=1)
    assert {c.id: c.split for c in one} == {c.id: c.split for c in again}
    assert {c.id: c.split for c in one} != {c.id: c.split for c in splits.deal(chats, seed=2)}


def test_declared_splits_stay() -> None:
    declared = ("train", "train", "validation", "validation", "test", "test")
    chats = [chat(n, split=split) for n, split in enumerate(declared)]
    found = splits.sides(chats, seed=0)
    assert (found.train, found.rule) == (chats[:2], "declared")
    assert Counter(c.split for c in found.test) == {"test": 2}


def test_without_groups_nothing_is_dealt() -> None:
    with pytest.raises(probes.DatasetInvalid, match="3 of 4 conversations have neither group nor split"):
        splits.sides([chat(n, group="g" if n == 3 else None) for n in range(4)], seed=0)


def test_too_few_groups_leave_a_side_empty() -> None:
    with pytest.raises(probes.DatasetInvalid, match="have split 'validation'"):
        splits.sides([chat(n, group=f"g{n // 4}") for n in range(8)], seed=0)


@pytest.mark.parametrize(
    ("one", "two"),
    [("a b", "a b"), ("a b", "a b c"), ("", "a"), ("a", "a c")],
    ids=["same", "cut", "empty", "far"],
)
def test_a_split_by_token_is_refused(one: str, two: str) -> None:
    train = [told("t1", one), told("t2", "a b"), told("t3", "z")]
    with pytest.raises(probes.SplitLeak, match="cut at another token"):
        splits.check_uncut(train=train, validation=[told("v", two)])
    splits.check_uncut(train=[*train, told("v", two)])


def test_other_answers_to_one_prompt_may_stand_apart() -> None:
    splits.check_uncut(train=[told("t1", "a b"), told("t2", "a c")], validation=[told("v", "a bc")])


def test_groups_that_leak_are_refused() -> None:
    chats = [chat(n, group="g", split=("train", "validation")[n // 2]) for n in range(4)]
    with pytest.raises(probes.SplitLeak, match="'g' is in train and in validation"):
        splits.sides(chats, seed=0)


def test_data_that_a_probe_was_trained_on_are_dealt_as_then() -> None:
    chats = [chat(n, group=f"g{n // 2}") for n in range(60)]
    made = Made(
        plan=Plan(seed=5),
        chosen=Chosen(kind="logistic", layers=(1,), regularisation=1.0, pooled=False),
        data_digest=dataset.digest(chats),
        versions={},
    )
    data = TrainingData(digest="0" * 64, split="train", n_positive=1, n_negative=1, made=made)
    trained = fake_manifest(training=data)
    assert splits.as_trained(chats, trained) == splits.deal(chats, seed=5)
    assert splits.as_trained(chats[2:], trained) == chats[2:]
    assert splits.as_trained(chats, fake_manifest()) == chats
