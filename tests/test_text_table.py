"""A table in each of its forms, read back by parsers that know nothing of it."""

from __future__ import annotations

import io
from html.parser import HTMLParser

import pytest
from markdown_it import MarkdownIt
from rich.console import Console

from weightsearch.text_table import Table

TABLE = Table(
    "Runs <b>",
    ("run", "accuracy", "recipe"),
    (("run/3", "0.912", "adam & [bold]relu"), ("run/11", "0.9", "<script>")),
    right=(1,),
    meaning="What they are.",
    caption="From a zoo.",
)


class Cells(HTMLParser):
    """The texts of a page's cells by row, how each is aligned, and the elements met."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.styles: list[str] = []
        self.tags: set[str] = set()
        self.within = False
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        self.within = tag in ("td", "th")
        if self.within:
            self.rows[-1].append("")
            self.styles.append((dict(attributes).get("style") or "").replace(" ", ""))

    def handle_endtag(self, tag: str) -> None:
        self.within = self.within and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.within:
            self.rows[-1][-1] += data


@pytest.mark.parametrize(
    "page", [TABLE.to_html(), MarkdownIt("js-default").render(TABLE.to_markdown())], ids=["html", "markdown"]
)
def test_html_and_markdown_hold_every_text(page: str):
    cells = Cells(page)
    assert cells.rows == [list(TABLE.columns), *map(list, TABLE.rows)]
    assert [style.endswith("right") for style in cells.styles] == [False, True, False] * 3
    assert not {"b", "script"} & cells.tags
    for text in ("Runs &lt;b&gt;", TABLE.meaning, TABLE.caption):
        assert text in page
    assert page.index(TABLE.meaning) < page.index("run/3") < page.index(TABLE.caption)


def test_text_is_aligned():
    assert TABLE.to_text() == (
        "Runs <b>\n"
        "What they are.\n"
        "  run     accuracy  recipe\n"
        "  run/3      0.912  adam & [bold]relu\n"
        "  run/11       0.9  <script>\n"
        "  From a zoo."
    )


def test_a_terminal_shows_what_fits_and_breaks_the_rest():
    def shown(width: int) -> list[str]:
        buffer = io.StringIO()
        Console(file=buffer, width=width).print(TABLE.to_rich())
        return [line.rstrip() for line in buffer.getvalue().splitlines()]

    assert shown(80)[0] == "Runs <b>"
    assert any(line.startswith("run/3") and line.endswith("adam & [bold]relu") for line in shown(80))
    narrow = shown(22)
    assert sum("run/" in line for line in narrow) == 2
    assert "adam&[bold]relu" in "".join(line[-6:] for line in narrow).replace(" ", "")


def test_without_rows_the_title_is_all():
    empty = Table("No checkpoint passes")
    assert empty.to_text() == "No checkpoint passes"
    assert empty.to_markdown() == "### No checkpoint passes"
    assert "table" not in Cells(empty.to_html()).tags
