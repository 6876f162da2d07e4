"""The live view in a terminal."""

from __future__ import annotations

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from loopguard.record import Stall
from loopguard.show import words
from loopguard.show.board import Board

_CULPRITS = 5


class Screen:
    """The board as rich draws it: what holds a loop now, what held it most, the latest stalls."""

    def __init__(self, board: Board, watched: str) -> None:
        self._board = board
        self.watched = watched
        self.now = 0.0

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        parts: list[RenderableType] = [
            self._head(),
            self._lasting(),
            Text(),
            self._culprits(),
            Text(),
        ]
        used = sum(len(console.render_lines(part, options)) for part in parts)
        yield Group(*parts, self._latest(max(1, (options.max_height or 24) - used - 3)))

    def _head(self) -> Text:
        summary = self._board.summary
        blame = summary.stalls - summary.not_scheduled
        held = f"held {words.seconds(summary.seconds)} in {words.number(blame, 'stall')}"
        return Text.assemble((held, "bold"), f", {self.watched}", no_wrap=True, overflow="ellipsis")

    def _lasting(self) -> Text:
        lasting = self._board.ongoing(self.now)
        if not lasting:
            return Text("nothing holds a loop now", "dim")
        lines = [self._line(stall) for stall in lasting]
        return Text("\n").join(lines)

    def _line(self, stall: Stall) -> Text:
        elapsed = max(stall.duration, self.now - stall.started_at)
        style = "bold red" if stall.severity == "error" else "bold yellow"
        return Text.assemble(
            (f"{words.seconds(elapsed):>10}", style),
            f"  {words.told(stall)}",
            no_wrap=True,
            overflow="ellipsis",
        )

    def _culprits(self) -> Table:
        table = _table("blocked", "stalls", "longest", "cause", "culprit")
        for culprit in self._board.summary.culprits[:_CULPRITS]:
            table.add_row(
                words.seconds(culprit.seconds),
                f"{culprit.stalls:,}",
                words.seconds(culprit.worst.duration),
                culprit.cause,
                Text(words.blamed(culprit.worst), "bold"),
            )
        return table

    def _latest(self, rows: int) -> Table:
        table = _table("at", "held", "cause", "culprit", "route", right=(0, 1))
        for stall in self._board.latest[:rows]:
            table.add_row(
                words.clock(stall.started_at),
                words.seconds(stall.duration),
                stall.cause,
                Text(words.blamed(stall)),
                Text(words.route_of(stall)),
            )
        return table


def _table(*names: str, right: tuple[int, ...] = (0, 1, 2)) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), expand=True, header_style="dim")
    for number, name in enumerate(names):
        table.add_column(
            name,
            justify="right" if number in right else "left",
            no_wrap=True,
            overflow="ellipsis",
            ratio=1 if name == "culprit" else None,
        )
    return table
