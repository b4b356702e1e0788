"""The page of a report: one HTML file with everything in it, for the screen, the phone and print. No scripts, and
nothing is loaded from anywhere."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from pathlib import Path

from experiments.figures import Drawn
from experiments.findings import RULE, Finding, Outcome

STYLE = Path(__file__).with_name("page.css")

ID = re.compile(rb'(\bid="|\bhref="#|url\(#)')
HEAD = re.compile(rb"^.*?(?=<svg)", re.DOTALL)
NOT_NEEDED = re.compile(rb"<!--.*?-->\s*|<metadata>.*?</metadata>\s*|<style[^>]*>.*?</style>\s*", re.DOTALL)
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


def inline(figure: Drawn) -> Markup:
    """The figure's SVG as a part of the page: without a head, its identifiers its own, since figures share them."""
    body = NOT_NEEDED.sub(b"", HEAD.sub(b"", figure.svg, count=1))
    body = ID.sub(rb"\g<1>" + figure.name.encode() + b"-", body)
    body = re.sub(rb' width="[^"]*pt" height="[^"]*pt"', b"", body, count=1)
    label = html.escape(figure.title).encode()
    body = body.replace(b"<svg ", b'<svg role="img" aria-label="' + label + b'" ', 1)
    return Markup(body.decode())


def figure_part(figure: Drawn) -> Markup:
    """A figure with its heading, what its marks mean, and its files."""
    files = Markup(
        f'{element("a", "SVG", href=figure.name + ".svg")} · {element("a", "PNG", href=figure.name + ".png")}'
    )
    caption = element("figcaption", Markup(f'{html.escape(figure.caption)} <span class="files">{files}</span>'))
    picture = element("div", inline(figure), kind="picture")
    heading = element("h2", figure.title, kind="unseen")  # the figure itself shows its title
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
