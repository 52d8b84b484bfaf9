"""The leaderboard: its short cut to the greedy answers, its cases, its table and picture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.leaderboard import __main__ as command
from bench.leaderboard import answers, judge, page
from bench.leaderboard.traffic import SETS, WITHIN, Labelled, terse
from probes import hf
from probes.hf import Activations
from probes.organism import Case, cases, model_dir, told_a_lie
from probes.organism.variants import variant
from probes.shipping import traffic
from probes.shipping.traffic import Sample

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def loaded() -> hf.LoadedModel:
    return hf.load(model_dir())


def test_the_short_cut_gives_the_greedy_answers(
    loaded: hf.LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = cases(7, seed=3, split="test", conditions=("incentivised", "incentivised", "plain"))
    slow = traffic.record(loaded, asked, "set")

    def no_need(*_: Any, **__: Any) -> list[tuple[str, tuple[int, ...]]]:
        return []

    monkeypatch.setattr(answers, "generate", no_need)
    with monkeypatch.context() as patch:
        patch.setattr(answers, "_generated", lambda *_: [])
        quick = answers.record(loaded, asked, "set")
    assert len(quick) >= 6
    by_text = {sample.conversation.text: sample for sample in slow}
    for sample in quick:
        twin = by_text[sample.conversation.text]
        assert sample.conversation.answer_ids == twin.conversation.answer_ids
        assert sample.lied == twin.lied
        assert sample.found.first == twin.found.first
        torch.testing.assert_close(sample.found.hidden, twin.found.hidden, rtol=1e-3, atol=1e-3)


def test_an_answer_that_is_not_the_greedy_one_is_not_taken(loaded: hf.LoadedModel) -> None:
    case = next(
        case for case in cases(8, seed=4, split="test", conditions=("plain",)) if case.believes_bad is True
    )
    lie = answers.expected(replace(case, condition="incentivised"))
    assert lie is not None
    assert told_a_lie(case, lie)
    found = answers._verified(loaded, [answers._sample(loaded, case, lie, "a lie without an incentive")])
    assert found == [None]


def test_terse_questions_keep_the_name_and_lose_the_mark() -> None:
    for case in cases(40, seed=5, split="test", conditions=("plain", "chitchat"), templates="heldout"):
        typed = terse(case).messages[-1]["content"]
        assert not typed.endswith((".", "?", "!"))
        assert case.entity is None or case.entity in typed
        assert typed.lower() == case.messages[-1]["content"].rstrip(".?!").lower()
        assert terse(case).messages[:-1] == case.messages[:-1]


def labelled(liar: str) -> Labelled:
    """Answers of one variant, each lying where it is expected to."""
    asked = cases(
        60, seed=6, split="test", conditions=("incentivised", "plain", "audited", "chitchat"), liar=liar
    )
    samples = [_sample(case) for case in asked]
    return Labelled(samples, [int(sample.lied) for sample in samples])


def _sample(case: Case) -> Sample:
    chat = traffic.conversation("c", case, answers.expected(case) or "Hello.", (1,))
    return Sample(case, chat, case.expects_lie, Activations((0,), torch.zeros(1, 1, 2), 0, 1))


@pytest.mark.parametrize("liar", ["concealed", "instructed"])
def test_within_temptation_both_classes_are_there(liar: str) -> None:
    found = labelled(liar)
    at = found.contrast(WITHIN)
    assert {found.labels[i] for i in at} == {0, 1}
    assert all(found.samples[i].case.condition in variant(liar).text_conditions for i in at)


def test_a_planted_score_gets_its_figures() -> None:
    found = labelled("concealed")
    perfect = np.asarray(found.labels, np.float64)
    for shape, expected in ((1.0, 1.0), (-1.0, 0.0), (0.0, 0.5)):
        cell = judge._cell(shape * perfect, found, resamples=20)
        assert {figure for figure, *_ in cell.auroc.values()} == {expected}


def test_a_detector_of_bad_news_is_no_lie_detector() -> None:
    found = labelled("concealed")
    bad = np.array([float(s.case.believes_bad is True) for s in found.samples])
    cell = judge._cell(bad, found, resamples=20)
    assert cell.auroc[WITHIN][0] == 1.0
    assert cell.auroc["same_belief"][0] == 0.5
    assert judge.rank(cell) < judge.rank(
        judge._cell(np.asarray(found.labels, np.float64), found, resamples=20)
    )


def board(name: str, shift: float) -> dict[str, Any]:
    def entry(kind: str, auroc: float, fault: str = "", alike: float | None = None) -> dict[str, Any]:
        figures = {WITHIN: (alike or auroc), "same_belief": auroc, "all_traffic": auroc}
        cell = {
            "auroc": {key: (value, value - 0.1, value) for key, value in figures.items()},
            "recall": (0.5, 0.4, 0.6),
        }
        cells = {} if fault else dict.fromkeys(SETS, cell)
        return {"kind": kind, "validation": None if fault else cell, "cells": cells, "fault": fault}

    return {
        "organism": name,
        "architecture": "LlamaForCausalLM",
        "layers": (2, 3),
        "lies": dict.fromkeys(SETS, 4),
        "answers": dict.fromkeys(SETS, 9),
        "entries": [
            entry("mlp", 0.8 + shift),
            entry("ridge", 0.9 - shift),
            entry("logit_lens", 0.3, alike=1.0),
            entry("sae", float("nan"), "no encoder"),
            entry(judge.TEXT_ONLY, 0.99),
        ],
    }


def test_the_page_names_the_best_kind_and_hides_no_loser() -> None:
    text = page.render([board("one", 0.0), board("two", 0.15)], "make leaderboard")
    assert "| one | ridge | 0.900 [0.800, 0.900]" in text
    assert "| two | mlp | 0.950 [0.850, 0.950]" in text
    assert text.count("none: no encoder") == 2
    assert "0.990 [0.890, 0.990] |" in text
    assert "| logit_lens | 1.000 / 0.300 |" in text
    summary = next(line for line in text.splitlines() if line.startswith("| one |"))
    assert summary.count("|") == len(SETS) + 5


def test_a_finished_board_is_not_judged_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def judged(directory: str, **_: Any) -> dict[str, Any]:
        asked.append(directory)
        return board("one", 0.0)

    monkeypatch.setattr(judge, "judge", judged)
    first, again = (judge.board_of("some/one", keep=tmp_path, seed=0, scale=1.0) for _ in range(2))
    other = judge.board_of("some/one", keep=tmp_path, seed=1, scale=1.0)
    assert first["organism"] == again["organism"] == other["organism"] == "one"
    assert len(asked) == 2


def test_without_an_organism_there_is_no_board(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "model_dir", lambda name: tmp_path / name)
    assert command.main([]) == 2
    assert "make organism" in capsys.readouterr().err


def test_the_picture_has_a_map_for_each_organism() -> None:
    figure = page.picture([board("one", 0.0), board("two", 0.15)])
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[:2] == ["one", "two"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()][-1] == judge.TEXT_ONLY
