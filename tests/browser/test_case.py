"""One generation as the page draws it, in a real Chromium."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from browsing import Visitor
from planted import NEUTRAL, Site, noise
from playwright.sync_api import expect

from monitor.unscored import Reason, nan_for

HOSTILE = (
    "<script>window.owned=1</script>",
    "<img src=x onerror=window.owned=1>",
    "</textarea></style><svg onload=window.owned=1>",
    "javascript:window.owned=1",
    "{{constructor}}",
    "\u202egnp.exe\u2066",
    "seen" + "".join(chr(0xE0000 + ord(c)) for c in "hidden") + "\ufe01\u3164",
    "\u0000\u001b[31m",
    "&lt;b&gt;",
    "a\tb",
    "x" * 5000,
)
PROMPT = "Tell me about the crane.\nPlease be kind."
ANSWER = "There is good news about the crane, because its paint is smooth and I would not worry."


@pytest.fixture(scope="module")
def filled() -> Iterator[Site]:
    with Site() as site:
        site.plant("one", PROMPT, ANSWER, peak=4.0)
        site.plant("hostile<img src=x onerror=window.owned=1>\u202eko", ["<b>", *HOSTILE], HOSTILE)
        site.plant("two", PROMPT, NEUTRAL, peak=1.0, choice=0)
        site.plant("two", PROMPT, ANSWER, peak=4.0, choice=1)
        holes = noise(12, 4, 4.0)
        holes[5] = nan_for(Reason.TAP_SILENT)
        site.plant("holes", ["a", " b", " c", " d"], [" e"] * 9, scores=holes)
        yield site


def test_tokens_are_coloured_by_their_side_of_the_threshold(filled: Site, visit: Visitor) -> None:
    page = visit(f"{filled.page}#id=one")
    tokens = page.locator(".tokens .t")
    record = filled.state.engines.recent.of("one")[0]
    expect(tokens).to_have_count(len(record.states) + 1)
    looks = tokens.evaluate_all("spans => spans.map(span => span.className.split(' ')[1])")
    sides = ["over" if score > 2.5 else "under" for score in record.states[:, 0]]
    assert [look if look != "even" else "under" for look in looks] == [*sides, "unfed"]
    assert sides.count("over") > 1
    classes = tokens.evaluate_all("spans => spans.map(span => span.className)")
    assert "masked" in classes[0], "the first token never counts"
    peak = next(i for i, look in enumerate(classes) if "peak" in look)
    assert peak == int(record.states[1:, 0].argmax()) + 1
    assert page.locator(".tokens .t").all_inner_texts()[1].strip() == "me"


def test_prompt_and_answer_stand_apart(filled: Site, visit: Visitor) -> None:
    page = visit(f"{filled.page}#id=one")
    expect(page.locator(".phase h3")).to_have_text(["Prompt 9 tokens", "Answer 17 tokens"])
    assert page.locator(".phase-answer .t").first.text_content() == "There"


def test_pointing_at_a_token_tells_what_every_probe_says(filled: Site, visit: Visitor) -> None:
    page = visit(f"{filled.page}#id=one")
    page.locator(".tokens .t").nth(3).hover()
    note = page.locator(".inspector")
    expect(note).to_contain_text("the")
    expect(note).to_contain_text("position 3 · prompt")
    states = filled.state.engines.recent.of("one")[0].states[3]
    shown = note.locator("td.value").all_inner_texts()
    names = note.locator("th").all_inner_texts()
    order = ["deception", "being-audited", "believed-valence"]
    expected = {name: states[order.index(name)] for name in names}
    for name, text in zip(names, shown, strict=True):
        assert float(text.replace("\u2212", "-")) == pytest.approx(float(expected[name]), rel=1e-3)
    page.locator(".tokens .t").last.hover()
    expect(note).to_contain_text("not_fed")


def test_the_highest_tokens_are_listed_and_lead_to_their_place(filled: Site, visit: Visitor) -> None:
    page = visit(f"{filled.page}#id=one")
    scores = filled.state.engines.recent.of("one")[0].states[1:, 0]
    best = [int(i) + 1 for i in scores.argsort()[::-1][:6]]
    buttons = page.locator(".highest button")
    expect(buttons).to_have_count(6)
    assert [int(text) for text in buttons.locator("small").all_inner_texts()] == best
    buttons.nth(1).click()
    expect(page.locator(".tokens .cursor")).to_have_attribute("data-i", str(best[1]))


def test_hostile_text_never_becomes_markup(filled: Site, visit: Visitor) -> None:
    identity = "hostile<img src=x onerror=window.owned=1>\u202eko"
    page = visit(f"{filled.page}")
    page.get_by_role("link", name="hostile").click()
    tokens = page.locator(".tokens .t")
    expect(tokens).to_have_count(2 * len(HOSTILE) + 1)
    assert tokens.nth(1).text_content() == HOSTILE[0]
    shown = "".join(tokens.all_text_contents())
    assert not set("\u202e\u2066\u0000\u001b") & set(shown)
    assert "\\u202egnp.exe\\u2066" in shown
    assert "seen\\ue0068\\ue0069" in shown  # tags: a hidden text that tokenizers read and nobody sees
    assert not set("\U000e0068\ufe01\u3164") & set(shown)
    assert max(len(text) for text in tokens.all_text_contents()) < 300
    assert page.locator(".case-id").text_content() == identity.replace("\u202e", "\\u202e")
    for i in range(tokens.count()):
        tokens.nth(i).hover(force=True)
    assert page.locator("main img, main script, main b, main textarea, nav img").count() == 0
    assert page.evaluate("window.owned") is None


def test_a_script_in_the_page_could_not_write_markup(filled: Site, visit: Visitor) -> None:
    """The policy itself: even a fault of ours would not become one of the reader."""
    page = visit(f"{filled.page}#id=one")
    expect(page.locator(".case")).to_be_visible()
    tried = page.evaluate(
        "() => { try { document.body.innerHTML = '<b>x</b>'; return 'done' } catch { return 'refused' } }"
    )
    assert tried == "refused"
    assert "TrustedHTML" in visit.faults.pop()


def test_probes_and_choices_can_be_chosen(filled: Site, visit: Visitor) -> None:
    page = visit(f"{filled.page}#id=two")
    expect(page.locator(".choice")).to_have_count(2)
    expect(page.locator('.choice[aria-pressed="true"]')).to_contain_text("choice 1")
    before = page.locator(".tokens .t").evaluate_all("s => s.map(x => x.className)")
    page.get_by_role("radio", name="believed-valence").click()
    expect(page.get_by_role("radio", name="believed-valence")).to_be_checked()
    expect(page.locator(".mark-threshold")).to_contain_text("median")
    assert page.locator(".tokens .t").evaluate_all("s => s.map(x => x.className)") != before
    assert "probe=believed-valence" in page.url
    page.get_by_role("button", name="choice 0").click()
    expect(page.locator(".phase-answer .t").first).to_have_text("The")
    assert "choice=0" in page.url


def test_a_deep_link_opens_choice_probe_and_token(filled: Site, visit: Visitor) -> None:
    page = visit(f"{filled.page}#id=two&choice=0&probe=being-audited&token=10")
    expect(page.get_by_role("radio", name="being-audited")).to_be_checked()
    expect(page.locator(".tokens .cursor")).to_have_attribute("data-i", "10")
    expect(page.locator(".inspector")).to_contain_text("position 10")


def test_the_keyboard_reaches_everything(filled: Site, visit: Visitor) -> None:
    page = visit(f"{filled.page}#id=one")
    cursor = page.locator(".tokens .cursor")
    expect(page.locator(".case")).to_be_visible()
    page.keyboard.press("p")
    peak = int(filled.state.engines.recent.of("one")[0].states[1:, 0].argmax()) + 1
    expect(cursor).to_have_attribute("data-i", str(peak))
    for key, place in (
        ("ArrowRight", peak + 1),
        ("ArrowLeft", peak),
        ("Home", 0),
        ("End", 25),
        ("PageUp", 0),
        ("a", 9),
    ):
        page.keyboard.press(key)
        expect(cursor).to_have_attribute("data-i", str(place))
    page.keyboard.press("ArrowUp")
    assert int(cursor.get_attribute("data-i") or 99) < 9
    page.keyboard.press("Home")
    page.keyboard.press("n")
    scores = filled.state.engines.recent.of("one")[0].states[:, 0]
    above = [i for i, score in enumerate(scores) if score > 2.5 and i > 0]
    expect(cursor).to_have_attribute("data-i", str(above[0]))
    page.keyboard.press("n")
    expect(cursor).to_have_attribute("data-i", str(above[1]))
    page.keyboard.press("N")
    expect(cursor).to_have_attribute("data-i", str(above[0]))
    page.keyboard.press("]")
    expect(page.get_by_role("radio").nth(1)).to_be_checked()
    page.keyboard.press("[")
    expect(page.get_by_role("radio").nth(0)).to_be_checked()
    page.keyboard.press("?")
    expect(page.locator("#help")).to_be_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("/")
    expect(page.locator("#search")).to_be_focused()


CONTRAST = """() => {
  const dot = Object.assign(document.createElement('canvas'), { width: 1, height: 1 }).getContext('2d');
  const luminance = (...layers) => {
    for (const colour of layers) { dot.fillStyle = colour; dot.fillRect(0, 0, 1, 1) }
    const linear = [...dot.getImageData(0, 0, 1, 1).data].slice(0, 3)
      .map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };
  const span = document.querySelector('.tokens .t');
  const paper = getComputedStyle(document.querySelector('.tokens')).backgroundColor;
  const levels = [1, 2, 3, 4, 5, 6, 7, 8].flatMap(level => [`l${level}`, `l${level} masked`]);
  const looks = ['over', 'under'].flatMap(side => levels.map(level => `t ${side} ${level}`));
  return looks.concat(['t bare', 't unfed', 't even l0']).map(look => {
    span.className = look;
    const style = getComputedStyle(span);
    const ink = luminance(paper, style.color), ground = luminance(paper, style.backgroundColor);
    return [look, (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05)];
  });
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stays_readable_on_every_colour(filled: Site, visit: Visitor, scheme: str) -> None:
    page = visit(f"{filled.page}#id=one", color_scheme=scheme)
    expect(page.locator(".case")).to_be_visible()
    contrast = dict(page.evaluate(CONTRAST))
    assert len(contrast) == 35
    enough = {look: 3.0 if "masked" in look or "unfed" in look else 4.5 for look in contrast}
    assert {look: ratio for look, ratio in contrast.items() if ratio < enough[look]} == {}


def test_the_id_can_be_copied(filled: Site, visit: Visitor) -> None:
    page = visit(f"{filled.page}#id=one")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy id").click()
    expect(page.get_by_role("button", name="Copied")).to_have_count(1)
    assert page.evaluate("navigator.clipboard.readText()") == "one"
    page.evaluate("delete Navigator.prototype.clipboard")  # as over plain HTTP
    page.get_by_role("button", name="Copy link").click()
    expect(page.get_by_role("button", name="Copied")).to_have_count(2)


def test_a_token_without_a_score_is_hatched_and_says_why(filled: Site, visit: Visitor) -> None:
    page = visit(f"{filled.page}#id=holes&token=5")
    token = page.locator(".tokens .t").nth(5)
    expect(token).to_have_class("t bare cursor")
    assert "repeating-linear-gradient" in token.evaluate("span => getComputedStyle(span).backgroundImage")
    expect(page.locator(".inspector")).to_contain_text("tap_silent: the tap did not fire")


def test_a_stored_case_without_text_shows_positions(tmp_path: Path, visit: Visitor) -> None:
    with Site(evidence_path=tmp_path / "evidence.sqlite") as site:
        site.plant("kept", PROMPT, ANSWER)
        site.plant("fine", PROMPT, ANSWER, peak=0.5)
        recent = site.state.engines.recent
        score = recent.of("fine")[0].verdicts["deception"].score
        assert site.state.evidence is not None
        site.state.evidence.close()
        while recent.of("fine"):
            recent._drop_oldest()
        page = visit(f"{site.page}#id=kept&token=12")
        expect(page.locator(".tokens .t").nth(12)).to_have_text("12")
        expect(page.locator(".inspector")).to_contain_text("text not stored")
        expect(page.locator(".tokens .peak")).to_have_count(1)
        page.goto(f"{site.page}#id=fine")
        expect(page.locator(".case .state")).to_contain_text("no longer kept")
        expect(page.get_by_role("radio", name="deception")).to_contain_text(f"{score:.4g} \u2264 2.5")


def test_a_response_that_is_forgotten_says_what_is_kept(filled: Site, visit: Visitor) -> None:
    page = visit(f"{filled.page}#id=gone%2F..%2Fx")
    expect(page.locator("main .state")).to_contain_text("cannot be shown")
    page.goto(f"{filled.page}#id=gone")
    expect(page.locator("main .state")).to_contain_text("remembered")


def test_twenty_thousand_tokens_open_and_walk_quickly(visit: Visitor) -> None:
    with Site() as site:
        scores = noise(19_999, 4_000, 4.0)
        site.plant(
            "long",
            [f" w{i % 997}" for i in range(4_000)],
            [f" v{i % 997}" if i % 40 else "\n" for i in range(16_000)],
            scores=scores,
        )
        page = visit(site.page)
        peak = site.state.engines.recent.of("long")[0].verdicts["deception"].peak_token
        row = page.locator(".row")
        expect(row).to_have_count(1)
        page.evaluate(
            """() => {
              window.longest = 0;
              const longer = entry => { window.longest = Math.max(window.longest, entry.duration) };
              new PerformanceObserver(list => list.getEntries().forEach(longer)).observe({ type: 'longtask' });
            }"""
        )
        row.click()
        expect(page.locator(".tokens .t")).to_have_count(20_000)
        page.keyboard.press("p")
        expect(page.locator(".tokens .cursor")).to_be_in_viewport()
        assert int(page.locator(".tokens .cursor").get_attribute("data-i") or 0) == peak
        spent = page.evaluate(
            """() => { const begun = performance.now();
              const tokens = document.querySelector('.tokens');
              const right = () => new KeyboardEvent('keydown', { key: 'ArrowRight', bubbles: true });
              for (let i = 0; i < 50; i++) tokens.dispatchEvent(right());
              tokens.getBoundingClientRect();
              return (performance.now() - begun) / 50 }"""
        )
        repaint = page.evaluate(
            """() => { const begun = performance.now();
              document.querySelectorAll('[role=radio]')[1].click();
              document.querySelector('.tokens').getBoundingClientRect();
              return performance.now() - begun }"""
        )
        longest = page.evaluate("window.longest")
        print(json.dumps({"longest task ms": longest, "a key ms": spent, "another probe ms": repaint}))
        assert longest < 3000
        assert spent < 60
        assert repaint < 1500
