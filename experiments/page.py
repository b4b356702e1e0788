"""The page of a report: one HTML file, for the screen, the phone and print, that shows the figures beside it. No
scripts, and nothing is loaded from anywhere else."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

from live_migration.experiments.figures import Drawn
from live_migration.experiments.findings import RULE, Finding, Outcome

STYLE = Path(__file__).with_name("page.css")

BADGES = {Outcome.HOLDS: "yes", Outcome.FAILS: "no", Outcome.UNKNOWN: "unknown"}


class Markup(str):
    """Text that is HTML already."""


def escape(value: object) -> str:
    """Anything as HTML text."""
    return value if isinstance(value, Markup) else html.escape(str(value))


def element(name: str, value: object, **attributes: str) -> Markup:
    """An HTML element around a text or around Markup. `kind` is its class."""
    words = "".join(f' {"class" if key == "kind" else key}="{html.escape(text)}"' for key, text in attributes.items())
    return Markup(f"<{name}{words}>{escape(value)}</{name}>")


def together(parts: Sequence[object]) -> Markup:
    """Pieces of a page, one after the other."""
    return Markup("\n".join(escape(part) for part in parts if part != ""))


def paragraph(text: object, kind: str = "") -> Markup:
    """A paragraph."""
    return element("p", text, kind=kind) if kind else element("p", text)


def section(title: str, name: str, *parts: object) -> Markup:
    """A part of the page that a link can lead to."""
    return element("section", together([element("h2", title), *parts]), id=name)


def table(titles: Sequence[str], rows: Sequence[Sequence[object]], words: int = 1) -> Markup:
    """A table that scrolls on its own where it is too wide; its first `words` columns are text, the others numbers."""
    def cells(name: str, row: Sequence[object]) -> Markup:
        return Markup("".join(
            element(name, value, kind="number") if place >= words else element(name, value)
            for place, value in enumerate(row)
        ))  # fmt: skip

    head = element("thead", element("tr", cells("th", titles)))
    body = element("tbody", together([element("tr", cells("td", row)) for row in rows]))
    return element("div", element("table", together([head, body])), kind="wide")


def figure_part(figure: Drawn) -> Markup:
    """A figure with its heading and what its marks mean."""
    image = Markup(f'<img src="{html.escape(figure.name)}.png" alt="{html.escape(figure.title)}">')
    picture = element("div", element("a", image, href=f"{figure.name}.png"), kind="picture")
    heading = element("h2", figure.title, kind="unseen")  # the figure itself shows its title
    caption = element("figcaption", figure.caption)
    return element("section", together([heading, element("figure", together([picture, caption]))]), id=figure.name)


def findings_part(findings: Sequence[Finding]) -> Markup:
    """Each finding: what came of it, the claim, the numbers."""
    counts = {outcome: sum(1 for one in findings if one.outcome is outcome) for outcome in Outcome}
    verbs = {
        Outcome.HOLDS: ("holds", "hold"),
        Outcome.FAILS: ("does not hold", "do not hold"),
        Outcome.UNKNOWN: ("was not measured", "were not measured"),
    }
    told = ", ".join(
        f"{counts[outcome]} {one if counts[outcome] == 1 else several}"
        for outcome, (one, several) in verbs.items()
        if counts[outcome]
    )
    intro = paragraph(f"Of {len(findings)} classic findings about live migration, in these runs {told}. {RULE}")
    items = [
        element("li", together([
            element("span", one.outcome.value, kind=f"badge {BADGES[one.outcome]}"),
            element("strong", one.claim + "."), one.sentence,
        ]))
        for one in findings
    ]  # fmt: skip
    return section("Findings", "findings", intro, element("ul", together(items), kind="findings"))


def whole(title: str, summary: object, parts: Sequence[object]) -> str:
    """The file."""
    head = together([
        Markup('<meta charset="utf-8">'),
        Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        element("title", title),
        element("style", Markup(STYLE.read_text())),
    ])  # fmt: skip
    body = element("main", together([element("h1", title), summary, *parts]))
    return f'<!DOCTYPE html>\n<html lang="en">\n{element("head", head)}\n{element("body", body)}\n</html>\n'
