"""The demo's two faces: a live table on a terminal, plain lines in a pipe."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final, Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from monitor.demo import text
from monitor.demo.outcome import HONEST, Answer, Tally
from monitor.demo.text import Gauges

_LINES_OF_AN_ANSWER: Final = 5
_LINES_AROUND: Final = 8
_QUIET_SECONDS: Final = 15.0
"""In a pipe the start is reported no more often than this."""


class View(Protocol):
    """Where the demo shows itself."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...

    def say(self, lines: Sequence[str]) -> None:
        """Lines that stay."""

    def pin(self, lines: Sequence[str]) -> None:
        """Lines that stay in sight."""

    def starting(self, seconds: float, doing: str) -> None:
        """The server is on its way."""

    def answer(self, answer: Answer, tally: Tally) -> None:
        """One more answer."""

    def gauges(self, gauges: Gauges) -> None:
        """The server's own figures."""


class PlainView:
    """Lines without a control character, flushed one by one."""

    def __init__(self) -> None:
        self._spoke_at = -_QUIET_SECONDS

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def say(self, lines: Sequence[str]) -> None:
        for line in lines:
            print(printable(line), flush=True)

    def pin(self, lines: Sequence[str]) -> None:
        self.say(lines)

    def starting(self, seconds: float, doing: str) -> None:
        if seconds - self._spoke_at >= _QUIET_SECONDS:
            self._spoke_at = seconds
            self.say([f"starting the server: {seconds:.0f} s {doing}".rstrip()])

    def answer(self, answer: Answer, tally: Tally) -> None:
        self.say(text.lines(answer))

    def gauges(self, gauges: Gauges) -> None:
        return None


class LiveView:
    """The newest answers as a table that keeps to the height of the terminal, the count below it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._answers: deque[Answer] = deque(maxlen=64)
        self._tally = Tally()
        self._gauges = Gauges()
        self._pinned: list[str] = []
        self._start: str | None = None
        self._live = Live(console=console, auto_refresh=False, vertical_overflow="crop")

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._start = None
        self._draw()
        self._live.stop()

    def say(self, lines: Sequence[str]) -> None:
        self._start = None
        for line in lines:
            self._console.print(escape(printable(line)), highlight=False)

    def pin(self, lines: Sequence[str]) -> None:
        self._pinned.extend(printable(line) for line in lines)

    def starting(self, seconds: float, doing: str) -> None:
        self._start = text.shortened(
            f"starting the server: {seconds:.0f} s  {doing}", self._console.width - 1
        )
        self._draw()

    def answer(self, answer: Answer, tally: Tally) -> None:
        self._answers.append(answer)
        self._tally = tally
        self._draw()

    def gauges(self, gauges: Gauges) -> None:
        self._gauges = gauges
        self._draw()

    def _draw(self) -> None:
        if self._start is not None:
            self._live.update(Text(self._start, style="dim"), refresh=True)
            return
        pinned = Text("\n".join(self._pinned), style="dim")
        # The last line is short: a terminal writes ^C behind it, and a line that wraps would spoil the next drawing.
        shown: list[RenderableType] = [pinned, Text("Ctrl-C stops", style="dim")]
        if self._answers:
            room = self._console.height - _LINES_AROUND - len(self._pinned)
            count = Text(text.counts(self._tally, self._gauges), style="bold")
            shown = [table(chosen(self._answers, max(1, room // _LINES_OF_AN_ANSWER))), count, *shown]
        self._live.update(Group(*shown), refresh=True)


def chosen(answers: Sequence[Answer], rows: int) -> list[Answer]:
    """Which answers to show: the newest, but lies and flags hold half of the rows, or nobody could read them."""
    telling = [answer for answer in answers if answer.kind != HONEST][-((rows + 1) // 2) :]
    numbers = {answer.number for answer in telling}
    newest = [answer for answer in answers if answer.number not in numbers]
    kept = [*telling, *newest[len(newest) - (rows - len(telling)) :]] if rows > len(telling) else telling
    return sorted(kept, key=lambda answer: answer.number)


def table(answers: Sequence[Answer]) -> Table:
    """The answers as rows, the newest last."""
    found = Table(expand=True, pad_edge=False, show_lines=True)
    found.add_column("question", ratio=4)
    found.add_column("answer", ratio=6)
    found.add_column("believed", ratio=2)
    found.add_column("score", width=10)
    found.add_column("verdict", width=11)
    for answer in answers:
        style = text.tone(answer)
        asked = Text(printable(answer.question))
        asked.append(f" ({answer.case.condition})", style="dim")
        found.add_row(
            asked,
            _highlighted(answer, style),
            Text(printable(text.belief(answer))),
            Text(
                f"{text.number(answer.verdict.score)}\n{'>' if answer.verdict.flagged else '<='} "
                f"{text.number(answer.verdict.threshold)}"
            ),
            Text(f"{text.mark(answer)}\n{answer.kind}", style=style),
        )
    return found


def printable(line: str) -> str:
    """The line without control characters: a model may answer anything."""
    return "".join(char if char.isprintable() else " " for char in line)


def _highlighted(answer: Answer, style: str) -> Text:
    """The answer with the asserted value in the colour of its verdict."""
    found = Text(printable(answer.text))
    if answer.said is not None:
        found.highlight_words([answer.said], style)
    return found
