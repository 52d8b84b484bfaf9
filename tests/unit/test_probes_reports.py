"""The page of a report card: self-contained, whole, escaped, and plain about what is missing."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from evaluating_fakes import bench, side

import probes
from probes.evaluating import protocol
from probes.evaluating.card import (
    Attack,
    Card,
    Causal,
    Condition,
    Effect,
    Fault,
    Figure,
    NotComputed,
    Share,
    Slice,
)
from probes.reports import html, plots

torch.set_num_threads(1)
VOID = {"meta", "br", "img", "hr", "path", "use", "rect"}


class Balance(HTMLParser):
    """Collects tags that are opened and not closed, and everything that would be fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.fetched += [
            str(value)
            for name, value in attrs
            if name in ("src", "href", "xlink:href", "srcset") and not str(value).startswith("#")
        ]
        assert not any(name.startswith("on") for name, _ in attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def share(hits: int, n: int = 20) -> Share:
    return Share(hits=hits, n=n, low=max(0.0, hits / n - 0.1), high=min(1.0, hits / n + 0.1))


@pytest.fixture(scope="module")
def without_model() -> Card:
    return protocol.evaluate(
        bench(side(80, "train", 0), side(80, "test", 1)),
        protocol.Options("planted.jsonl", "probewatch evaluate", "0", quick=True),
    )


@pytest.fixture(scope="module")
def full(without_model: Card) -> Card:
    effects = [
        Effect(intervention=name, along=along, turned_off=share(10), turned_on=share(0), broken=share(0))
        for name, along in [
            ("no intervention", "none"),
            *(("patched", a) for a in ("probe", "class means", "random")),
        ]
    ]
    figure = Figure(value=0.9, low=0.85, high=0.95)
    return without_model.model_copy(
        update={
            "causal": Causal(effects=tuple(effects), verdict="No evidence."),
            "stress": tuple(
                Condition(
                    name=name,
                    detail="changed",
                    n_positive=9,
                    n_negative=9,
                    auroc=figure,
                    recall=share(9),
                    false_positives=None,
                )
                for name in ("as it is", "8x context")
            ),
            "attack": Attack(
                suffix="<b>so</b>",
                steps=3,
                n=20,
                recall_before=share(20),
                recall_random=share(19),
                recall_after=share(2),
                behaviour_after=share(18),
            ),
            "slices": (
                Slice(
                    field="family",
                    value="<i>D</i>",
                    n_positive=5,
                    n_negative=0,
                    auroc=0.9,
                    own_negatives=False,
                    recall=share(5, 5),
                    false_positives=None,
                ),
            ),
            "faults": (Fault(key="text-words", text="words & pairs: AUROC 0.95 comes within 0.1"),),
        }
    )


def parsed(page: str) -> Balance:
    found = Balance()
    found.feed(page)
    return found


@pytest.fixture(scope="module")
def bare(without_model: Card) -> str:
    return html.page(without_model)


@pytest.fixture(scope="module")
def whole(full: Card) -> str:
    return html.page(full)


@pytest.mark.thorough
def test_a_page_stands_alone(bare: str, whole: str) -> None:
    for page in (bare, whole):
        found = parsed(page)
        assert found.open == []
        assert found.fetched == []
        assert "<script" not in page
        assert "@import" not in page
        assert "url(http" not in page


def test_every_part_is_there_or_is_said_to_be_missing(bare: str, whole: str) -> None:
    less, more = (" ".join(parsed(page).text) for page in (bare, whole))
    for heading in (
        "Separation",
        "Controls that must fail",
        "Leakage",
        "At the threshold",
        "Layers",
        "By group",
    ):
        assert heading in less
        assert heading in more
    assert less.count("Not computed") == 3  # causal check, stress, attack
    assert "left out by --quick" in less
    assert "Not computed" not in more
    assert "The gate is shut: 1 fault" in more
    assert "words & pairs" in more
    assert "recall with it" in more


def test_what_comes_from_data_is_escaped(whole: str) -> None:
    assert "<i>D</i>" not in whole
    assert "<b>so</b>" not in whole
    assert "&lt;b&gt;so&lt;/b&gt;" in whole


def test_drawings_take_the_pages_colours_and_are_the_same_each_time(full: Card, whole: str) -> None:
    assert plots.available(full) == list(plots.PANELS)
    drawn = re.findall(r"<svg.*?</svg>", whole, flags=re.DOTALL)
    assert len(drawn) == len(plots.PANELS)
    assert all("#0101" not in svg for svg in drawn)
    assert all("var(--ink)" in svg and "<text" in svg and 'role="img"' in svg for svg in drawn)
    assert plots.svg(full, "roc") in whole
    ids = [name for svg in drawn for name in set(re.findall(r'\bid="([^"]+)"', svg))]
    assert len(ids) == len(set(ids)), "two drawings of a page share an id"
    found = re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', "".join(drawn))
    assert found
    assert {name for pair in found for name in pair if name} <= set(ids)


def test_a_picture_on_demand(full: Card, without_model: Card, tmp_path: Path) -> None:
    plots.picture(without_model, tmp_path / "card.png")
    assert (tmp_path / "card.png").read_bytes().startswith(b"\x89PNG")
    assert "stress" not in plots.available(without_model)
    with pytest.raises(probes.DataError, match=r"\.png, \.svg, \.pdf"):
        plots.picture(full, tmp_path / "card.bmp")


def test_a_missing_panel_is_not_drawn(without_model: Card) -> None:
    assert isinstance(without_model.causal, NotComputed)
    with pytest.raises(ValueError, match="Causal was not computed"):
        plots.svg(without_model, "causal")
