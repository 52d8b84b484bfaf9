"""The residual stream out of what a block returns; no guessing about blocks that nobody verified."""

from __future__ import annotations

import pytest
import torch

from monitor.errors import TapError
from monitor.residual import RULES, ResidualRule, check_signature, residual_stream, rule_for

H, R = torch.full((2, 3), 5.0), torch.full((2, 3), 7.0)


def test_a_fused_block_hands_over_two_parts_of_a_sum() -> None:
    assert torch.equal(residual_stream(ResidualRule.FUSED, (H, R)), torch.full((2, 3), 12.0))


def test_a_complete_block_hands_over_the_stream_first() -> None:
    assert residual_stream(ResidualRule.COMPLETE, (H, R)) is H


def test_a_plain_block_hands_over_the_stream() -> None:
    assert residual_stream(ResidualRule.PLAIN, H) is H


@pytest.mark.parametrize(
    ("rule", "output"),
    [
        (ResidualRule.PLAIN, (H, R)),
        (ResidualRule.FUSED, H),
        (ResidualRule.FUSED, (H,)),
        (ResidualRule.COMPLETE, H),
    ],
)
def test_a_block_that_returns_another_shape_is_refused(rule: ResidualRule, output: object) -> None:
    with pytest.raises(TapError, match=rf"^[^\n]*{rule.value}[^\n]*monitor/residual\.py[^\n]*$"):
        residual_stream(rule, output)


def test_reading_the_stream_leaves_both_parts_as_they_were() -> None:
    h, r = H.clone(), R.clone()
    residual_stream(ResidualRule.FUSED, (h, r))
    assert torch.equal(h, H)
    assert torch.equal(r, R)


@pytest.mark.parametrize("block", RULES)
def test_known_blocks_have_their_rule(block: str) -> None:
    assert rule_for(block) is RULES[block]


def test_an_unknown_block_is_refused_with_the_known_ones() -> None:
    with pytest.raises(TapError, match=r"^[^\n]*'MysteryLayer'[^\n]*LlamaDecoderLayer[^\n]*$"):
        rule_for("MysteryLayer")


class WithResidual:
    def forward(self, positions: object, hidden_states: object, residual: object) -> None: ...


class Alone:
    def forward(self, hidden_states: object) -> None: ...


@pytest.mark.parametrize(
    ("rule", "block"),
    [
        (ResidualRule.FUSED, WithResidual),
        (ResidualRule.PLAIN, Alone),
        (ResidualRule.COMPLETE, WithResidual),
        (ResidualRule.COMPLETE, Alone),
    ],
)
def test_a_block_that_takes_what_its_rule_implies_is_accepted(rule: ResidualRule, block: type) -> None:
    check_signature(rule, block())


@pytest.mark.parametrize(
    ("rule", "block", "words"),
    [(ResidualRule.FUSED, Alone, "does not take"), (ResidualRule.PLAIN, WithResidual, "takes")],
)
def test_a_block_that_does_not_is_refused(rule: ResidualRule, block: type, words: str) -> None:
    with pytest.raises(
        TapError, match=rf"^[^\n]* {words} a residual[^\n]*monitor/residual\.py[^\n]*$"
    ) as caught:
        check_signature(rule, block())
    assert block.__name__ in str(caught.value)
    assert rule.value in str(caught.value)


def test_the_signature_is_that_of_the_class_whatever_hangs_on_the_block() -> None:
    block = Alone()
    block.forward = WithResidual().forward  # type: ignore[method-assign,assignment]
    check_signature(ResidualRule.PLAIN, block)
