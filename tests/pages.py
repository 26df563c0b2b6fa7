"""What a browser makes of a report."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "br", "link", "img", "input", "hr", "source"}


@dataclass
class Page(HTMLParser):
    """The page's elements, its text and its tables."""

    text: str = ""
    elements: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    tables: list[list[list[str]]] = field(default_factory=list)
    open_tags: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open_tags.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open_tags.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open_tags and self.open_tags[-1] != "style":
            self.text += data
            if {"td", "th"} & set(self.open_tags):
                # A cell's interval stands in an element of its own.
                self.tables[-1][-1][-1] += f" {data}" if self.open_tags[-1] == "small" else data

    def table(self, corner: str) -> dict[str, dict[str, str]]:
        """{row: {column: cell}} of the first table with this in its first cell."""
        rows = next(table for table in self.tables if table[0][0] == corner)
        header = [cell.replace("\xa0", " ").rstrip(" ↑↓") for cell in rows[0]]
        return {row[0]: dict(zip(header, row, strict=True)) for row in rows[1:]}


def read_page(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    page.close()
    assert not page.open_tags
    return page
