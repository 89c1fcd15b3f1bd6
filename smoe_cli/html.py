"""The look of the reports: one self-contained page, its tables, cards, badges and SVG bars.

Pages load nothing from elsewhere, work without JavaScript, follow the reader's dark mode, and say by text or shape
whatever they say by colour. Arguments called `..._html` are markup; all others are text and are escaped here.
"""

from __future__ import annotations

import html
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from smoe_cli import __version__

CSS = """
:root{color-scheme:light dark;--page:#f7f5f1;--card:#fff;--ink:#1c2230;--muted:#656c7b;--line:#e3dfd7;--soft:#f2efe8;
--nb:#b65c12;--wb:#20639b;--good:#1c7c4c;--bad:#b3261e;--warn:#8a5a00;--del-bg:#fbe4e1;--ins-bg:#dfeafa;--sub-bg:#fbf0d3}
@media(prefers-color-scheme:dark){:root{--page:#12151b;--card:#1a1e27;--ink:#e7e9ee;--muted:#9aa3b2;--line:#2d3340;
--soft:#222732;--nb:#e69a4c;--wb:#6cb0ea;--good:#5cc48d;--bad:#f28b82;--warn:#e0b252;--del-bg:#46231f;--ins-bg:#1c3350;
--sub-bg:#41371a}}
*{box-sizing:border-box}
html{scroll-behavior:smooth}
body{margin:0;background:var(--page);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main,header,footer{max-width:72rem;margin:0 auto;padding:0 1.5rem}
header{padding-top:2.5rem}
h1,h2{font-family:Charter,"Iowan Old Style",Georgia,"DejaVu Serif",serif;letter-spacing:-.01em;line-height:1.15;font-weight:600}
h1{font-size:2.4rem;margin:.15rem 0 .4rem;overflow-wrap:anywhere}
h2{font-size:1.5rem;margin:2.75rem 0 .3rem}
h3{font-size:1rem;margin:0 0 .6rem}h3 .small{font-weight:400;margin-left:.3rem}
p{margin:.3rem 0}
a{color:var(--wb)}
code,.mono{font-family:ui-monospace,"SF Mono",Menlo,Consolas,"DejaVu Sans Mono",monospace;font-size:.86em;overflow-wrap:anywhere}
.kicker{color:var(--muted);text-transform:uppercase;letter-spacing:.12em;font-size:.75rem;font-weight:600;margin:0}
.muted,.lead{color:var(--muted)}
.lead{max-width:48rem;margin-bottom:1rem}
.small{font-size:.84rem}
nav{display:flex;flex-wrap:wrap;gap:.3rem 1.2rem;margin-top:1rem;padding:.7rem 0;border-block:1px solid var(--line);font-size:.92rem}
.badge{display:inline-block;border:1px solid currentColor;border-radius:99px;padding:.05rem .6rem;font-size:.78rem;
margin:0 .35rem .2rem 0;white-space:nowrap}
.badge.note,.badge.warn{color:var(--warn)}.badge.bad{color:var(--bad)}.badge.good{color:var(--good)}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(9.5rem,1fr));gap:.8rem;margin:1.3rem 0}
.card,.panel{background:var(--card);border:1px solid var(--line);border-radius:12px}
.card{padding:.8rem 1rem}
.card b{display:block;font-size:1.55rem;line-height:1.2;font-weight:650;font-variant-numeric:tabular-nums}
.panel{padding:1.1rem 1.3rem;margin:1rem 0}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(21rem,1fr));gap:1rem;align-items:start}
.grid>.panel{margin:0}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
caption{text-align:left;color:var(--muted);font-size:.88rem;padding-bottom:.4rem}
th{text-align:left;white-space:nowrap;
font-size:.78rem;color:var(--muted);font-weight:600;border-bottom:1px solid var(--line);padding:.35rem .7rem .35rem 0}
td{border-bottom:1px solid var(--line);padding:.5rem .7rem .5rem 0;vertical-align:top}
.compact td,.compact th[scope=row]{padding-block:.22rem;font-size:.92rem;border-bottom-color:var(--soft)}
tr:last-child>td,tr:last-child>th[scope=row]{border-bottom:0}
th[scope=row]{white-space:normal;font-size:.95rem;color:var(--ink);vertical-align:top;padding-top:.5rem}
.num{text-align:right}.num+td:not(.num),.num+th:not(.num){padding-left:1rem}
svg{display:block;max-width:100%;height:auto}
svg text{fill:var(--ink);font:12px system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
svg .faint{fill:var(--muted)}
.f-nb{fill:var(--nb)}.f-wb{fill:var(--wb)}.f-good{fill:var(--good)}.f-bad{fill:var(--bad)}
.f-plain{fill:var(--muted)}.f-track{fill:var(--soft)}
.t-nb{color:var(--nb)}.t-wb{color:var(--wb)}.t-good{color:var(--good)}.t-bad{color:var(--bad)}
[hidden]{display:none!important}
footer{padding:2.5rem 1.5rem 3rem;color:var(--muted);font-size:.84rem}
@media print{body{background:#fff}nav,.tools{display:none}.panel,.card{break-inside:avoid}}
"""


def escape(text: object) -> str:
    """Text as HTML, safe between tags and inside quoted attributes."""
    return html.escape(str(text), quote=True)


def page(
    *,
    title: str,
    kicker: str,
    subtitle: str,
    notes: Sequence[str],
    links: Sequence[tuple[str, str]],
    body_html: str,
    style: str,
    script: str = "",
) -> str:
    """A whole page.

    Args:
        title: Heading and window title.
        kicker: Kind of page, in small letters above the title.
        subtitle: One line below the title.
        notes: What a reader must know first; a badge each, below the subtitle.
        links: (anchor, text) of the page's sections.
        body_html: Markup of everything else.
        style: CSS rules of this kind of page.
        script: JavaScript that adds comfort; the page is complete without it.
    """
    links_html = "".join(f'<a href="#{escape(anchor)}">{escape(text)}</a>' for anchor, text in links)
    script_html = f"<script>{script}</script>" if script else ""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)} · {escape(kicker)}</title>
<style>{CSS}{style}</style>
</head>
<body>
<header>
<p class="kicker">{escape(kicker)}</p>
<h1>{escape(title)}</h1>
<p class="muted">{escape(subtitle)}</p>
<p>{"".join(badge(note, "note") for note in notes)}</p>
<nav aria-label="Sections">{links_html}</nav>
</header>
<main>
{body_html}
</main>
<footer>Written by smoe {escape(__version__)}. This page is one file and loads nothing from elsewhere.</footer>
{script_html}
</body>
</html>
"""


def section(anchor: str, title: str, lead: str, body_html: str) -> str:
    """A part of the page with its heading and one explaining sentence (may be empty)."""
    lead_html = f'<p class="lead">{escape(lead)}</p>' if lead else ""
    return f'<section id="{escape(anchor)}">\n<h2>{escape(title)}</h2>\n{lead_html}\n{body_html}\n</section>\n'


def badge(text: str, kind: str = "") -> str:
    """A small label; `kind` is `note`, `warn`, `bad`, `good` or empty."""
    return f'<span class="badge {escape(kind)}">{escape(text)}</span>'


def cards(items: Sequence[tuple[str, str]]) -> str:
    """Cards of (value, what it is)."""
    inner = [f'<div class="card"><b>{escape(value)}</b><span class="muted small">{escape(name)}</span></div>' for value, name in items]
    return f'<div class="cards">{"".join(inner)}</div>'


def panel(body_html: str, heading_html: str = "", aside: str = "", css: str = "") -> str:
    """A framed part of a section.

    Args:
        body_html: What is in it.
        heading_html: Markup of its heading; empty for none.
        aside: Small text beside the heading.
        css: Further CSS classes.
    """
    aside_html = f' <span class="muted small">{escape(aside)}</span>' if aside else ""
    heading = f"<h3>{heading_html}{aside_html}</h3>" if heading_html else ""
    return f'<div class="panel {escape(css)}">{heading}{body_html}</div>'


def grid(panels_html: Sequence[str]) -> str:
    """Panels side by side where the screen is wide enough."""
    return f'<div class="grid">{"".join(panels_html)}</div>'


def table(header: Sequence[str], rows_html: Sequence[Sequence[str]], numeric: Collection[int] = (), caption: str = "") -> str:
    """A table that scrolls sideways on narrow screens.

    Args:
        header: Column names, as text.
        rows_html: Cells, as markup; the first of each row is its heading.
        numeric: Columns (from 0) to align right.
        caption: What the table shows; may be empty.
    """

    def cell(column: int, content: str) -> str:
        css = ' class="num"' if column in numeric else ""
        return f'<th scope="row"{css}>{content}</th>' if column == 0 else f"<td{css}>{content}</td>"

    head = "".join(f'<th scope="col"{" class=num" if column in numeric else ""}>{escape(name)}</th>' for column, name in enumerate(header))
    body = "\n".join("<tr>" + "".join(cell(column, content) for column, content in enumerate(row)) + "</tr>" for row in rows_html)
    caption_html = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f'<div class="scroll"><table>{caption_html}<thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


@dataclass(frozen=True)
class Bar:
    """One bar of a chart.

    Attributes:
        label: Left of the bar.
        value: Length; zero or more.
        text: Right of the bar: the value with its unit.
        css: `nb`, `wb`, `good`, `bad` or `plain`.
    """

    label: str
    value: float
    text: str
    css: str


def bar_chart(bars: Sequence[Bar], maximum: float, description: str, label_width_px: int = 34) -> str:
    """Horizontal bars on a common scale from 0, as inline SVG.

    Args:
        bars: From top to bottom.
        maximum: Value of a full bar; `nice_maximum` makes a round one. Positive.
        description: Read out by screen readers.
        label_width_px: Room for the labels.
    """
    row_px, bar_px, width_px, text_px = 24, 14, 340, 70
    track_px = width_px - label_width_px - text_px
    parts = []
    for number, bar in enumerate(bars):
        y = number * row_px + (row_px - bar_px) / 2
        # A wrong scale must not draw over the text.
        length = track_px * min(max(bar.value / maximum, 0.0), 1.0)
        parts.append(
            f'<text x="0" y="{y + 11:g}">{escape(bar.label)}</text>'
            f'<rect class="f-track" x="{label_width_px}" y="{y:g}" width="{track_px}" height="{bar_px}" rx="3"/>'
            f'<rect class="f-{escape(bar.css)}" x="{label_width_px}" y="{y:g}" width="{length:.1f}" height="{bar_px}" rx="3"/>'
            f'<text x="{label_width_px + track_px + 8}" y="{y + 11:g}">{escape(bar.text)}</text>'
        )
    size = f'width="{width_px}" height="{len(bars) * row_px}" viewBox="0 0 {width_px} {len(bars) * row_px}"'
    return f'<svg role="img" aria-label="{escape(description)}" {size}>{"".join(parts)}</svg>'


def nice_maximum(values: Collection[float]) -> float:
    """The smallest of 1, 1.5, 2, 3, 5 and 7.5 times a power of ten that is no smaller than any value; 1 for zeros."""
    largest = max(values, default=0.0)
    if largest <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(largest))
    return next(step * power for step in (1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0) if step * power >= largest)


def scale_text(label: str, maximum: float, lower_is_better: bool) -> str:
    """How to read the bars of one metric."""
    return f"{label} from 0 to {maximum:g}, {'shorter' if lower_is_better else 'longer'} is better"


def value_text(value: float, unit: str) -> str:
    """A value with one decimal; percent signs are shown, points are not."""
    return f"{value:.1f}\u202f%" if unit == "%" else f"{value:.1f}"


def duration_text(hours: float) -> str:
    """Hours, minutes or seconds, whichever reads best."""
    if hours >= 1:
        return f"{hours:.1f}\u202fh"
    return f"{hours * 60:.0f}\u202fmin" if hours * 60 >= 1 else f"{hours * 3600:.0f}\u202fs"
