"""One table of texts, as a terminal, Markdown and HTML show it, and strangers' text made fit to be shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from weightsearch.html_template import render_html

if TYPE_CHECKING:
    from rich.console import RenderableType


def printable(text: str) -> str:
    """A stranger's text in one line that a terminal shows and does not obey.

    Control characters, escape sequences, line breaks and marks that turn the direction of writing are escaped as
    Python writes them; other spaces become one of the usual kind.

    Example:
        >>> printable("run\\x1b[2J")
        'run\\\\x1b[2J'
    """
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else " " if letter == "\u00a0" else letter.encode("unicode_escape").decode()
        for letter in text
    )


def counted(number: int, noun: str) -> str:
    """A number and what it counts.

    Example:
        >>> counted(1, "file"), counted(1200, "file")
        ('1 file', '1,200 files')
    """
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


@dataclass(frozen=True)
class Table:
    """Rows of one text a column, under a title. Without rows, only its title is shown.

    Texts of rows and the title may be a stranger's: they are made `printable`.

    Args:
        right: the positions of columns that hold numbers, which are aligned at the right.
        whole: the positions of columns that a narrow terminal does not break.
        meaning: a sentence between the title and the table.
        caption: a sentence below it.

    Example:
        >>> print(Table("Runs", ("run", "accuracy"), (("run/3", "0.912"), ("run/11", "0.9")), right=(1,)).to_text())
        Runs
          run     accuracy
          run/3      0.912
          run/11       0.9
    """

    title: str
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    right: tuple[int, ...] = ()
    whole: tuple[int, ...] = (0,)
    meaning: str = ""
    caption: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "title", printable(self.title))
        object.__setattr__(self, "rows", tuple(tuple(map(printable, row)) for row in self.rows))

    def to_markdown(self, heading: str = "###") -> str:
        """A heading and a table as GitHub writes it, https://github.github.com/gfm/#tables-extension-."""
        parts = [f"{heading} {self.title}"] if self.title else []
        parts.append(self.meaning)
        if self.rows:
            rule = "|".join("---:" if position in self.right else "---" for position in range(len(self.columns)))
            rows = [[text.replace("|", "\\|") for text in row] for row in self.rows]
            lines = [f"| {' | '.join(cells)} |" for cells in (self.columns, *rows)]
            parts.append("\n".join([lines[0], f"|{rule}|", *lines[1:]]))
        parts.append(self.caption)
        return "\n\n".join(filter(None, parts))

    def to_text(self) -> str:
        """Aligned columns, as wide as they need to be."""
        lines = [self.title, self.meaning]
        if self.rows:
            cells = (self.columns, *self.rows)
            widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
            for row in cells:
                padded = [
                    text.rjust(width) if position in self.right else text.ljust(width)
                    for position, (text, width) in enumerate(zip(row, widths, strict=True))
                ]
                lines.append(f"  {'  '.join(padded)}".rstrip())
        if self.caption:
            lines.append(f"  {self.caption}")
        return "\n".join(filter(None, lines))

    def to_html(self) -> str:
        """Elements for a page or a notebook, with every text escaped."""
        return render_html("table.html", table=self)

    def to_rich(self) -> RenderableType:
        """For rich's console, which breaks the columns that are not `whole` where it is narrow."""
        from rich import box
        from rich.console import Group
        from rich.table import Table as RichTable
        from rich.text import Text

        parts: list[RenderableType] = [Text(self.title, style="bold")] if self.title else []
        if self.meaning:
            parts.append(Text(self.meaning, style="dim"))
        if self.rows:
            table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
            for position, column in enumerate(self.columns):
                table.add_column(
                    Text(column),
                    justify="right" if position in self.right else "left",
                    no_wrap=position in self.whole,
                    overflow="fold",
                )
            for row in self.rows:
                table.add_row(*map(Text, row))
            parts.append(table)
        if self.caption:
            parts.append(Text(self.caption, style="dim"))
        return Group(*parts)
