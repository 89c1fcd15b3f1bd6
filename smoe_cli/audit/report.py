"""The audit report: one HTML page that shows which expert served which route, and what every wrong expert costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from smoe_cli import html
from smoe_cli.html import escape
from smoe_cli.records import AuditReport, Served, Swap
from smoe_cli.scoring.metrics import find_metric

STACKS = ("encoder", "decoder")
"""In the order in which data meets them."""

LINKS = [
    ("findings", "Findings"),
    ("served", "Who served whom"),
    ("swaps", "Wrong experts"),
    ("parameters", "Parameters"),
    ("routes", "Data"),
]

STYLE = """
.verdict{border-left:6px solid;padding:.9rem 1.2rem;font-size:1.15rem}
.verdict.good{border-left-color:var(--good)}.verdict.bad{border-left-color:var(--bad)}
.verdict b{font-weight:650}
.findings{margin:0;padding-left:1.3rem}.findings li{padding:.35rem 0}
.map .cell{fill:var(--wb)}.map .cell.off{fill:var(--bad)}
.map .frame{fill:none;stroke:var(--line)}.map .frame.planned{stroke:var(--ink);stroke-width:1.6}
.map .on{fill:#fff}.map text{font-size:11px}.map text.value{text-anchor:middle}
.map text.layer{text-anchor:middle;fill:var(--muted)}
@media(prefers-color-scheme:dark){.map .on{fill:#10131a}}
"""


def harm(swap: Swap) -> float:
    """How much worse the wrong expert is, in units of the metric; negative when it is better."""
    difference = swap.value - swap.right_value
    return difference if find_metric(swap.metric).lower_is_better else -difference


def audit_report_html(report: AuditReport) -> str:
    """Render an audit.

    Args:
        report: What `smoe route-audit` saw.

    Returns:
        A self-contained page.

    Raises:
        DataError: If a row of `served` or `swaps` lacks a field or has an unknown one.
        ConfigError: If a swap was measured with a metric that is not in the metrics table.
    """
    served = report.served
    swaps = sorted(report.swaps, key=lambda swap: STACKS.index(swap.stack))
    observed = sum(row.utterances for row in served)
    planned = sum(row.utterances for row in served if row.planned)
    overview = [
        (f"{report.cuts:,}", "cuts with checked tags"),
        (f"{len(report.routes):,}", "routes"),
        (f"{report.layers:,}", "routed layers"),
        (f"{report.observations:,}", "observations (layer × utterance)"),
        (f"{_share(planned, observed)}", "served by the planned expert"),
    ]
    body = _verdict(report) + html.cards(overview) + _findings(report) + _served(served) + _swaps(swaps) + _parameters(report.parameters)
    body += _routes(report)
    return html.page(
        title=report.system,
        kicker="Route audit",
        subtitle=(f"Model {report.model}. " if report.model else "")
        + f"{sum(report.routes.values()):,} cuts run over {len(report.routes):,} routes, {report.layers:,} routed layers",
        notes=report.notes,
        links=LINKS,
        body_html=body,
        style=STYLE,
    )


def _share(part: int, whole: int) -> str:
    """A share in percent; 100 % and 0 % only if exact, because one stray utterance is what an audit looks for."""
    if not whole:
        return "–"
    if part in (0, whole):
        return f"{100 * part // whole}\u202f%"
    return f"{min(max(100 * part / whole, 0.1), 99.9):.1f}\u202f%"


def _verdict(report: AuditReport) -> str:
    count = len(report.findings)
    if not count:
        return html.panel(f"<b>✓ Passed.</b> {report.observations:,} observations, no findings.", css="verdict good")
    text = f"<b>✗ {count:,} finding{'s' if count > 1 else ''}.</b> Read {'them' if count > 1 else 'it'} before you trust this system."
    return html.panel(text, css="verdict bad")


def _findings(report: AuditReport) -> str:
    items = "".join(
        f'<li><b>{escape(finding.check)}</b> <span class="mono muted">{escape(finding.where)}</span><br>{escape(finding.message)}'
        f'<br><span class="muted small">What to do: {escape(finding.hint)}</span></li>'
        for finding in report.findings
    )
    content = f'<ol class="findings">{items}</ol>' if items else "<p>None.</p>"
    return html.section("findings", "Findings", "", html.panel(content))


def _served(served: Sequence[Served]) -> str:
    panels = []
    for stack in dict.fromkeys(row.stack for row in served):
        plot = _heat_map(stack, [row for row in served if row.stack == stack])
        panels.append(html.panel(f'<div class="scroll">{plot}</div>', escape(stack)))
    lead = (
        "Share of a route's utterances, in percent, that each expert served in each layer. A heavy frame marks the planned expert; "
        "a red cell with an exclamation mark was served by another."
    )
    if len({row.part for row in served if row.stack == "encoder"}) > 1:
        lead += " A Conformer's layer has two routed networks: 0.1 and 0.2 are the first and the second half-step of layer 0."
    return html.section("served", "Who served whom", lead, "".join(panels) or html.panel("No routed layers: nothing to observe."))


def _heat_map(stack: str, rows: Sequence[Served]) -> str:
    """Route and expert down, layer across; every number is also printed in its cell."""
    parts_of_layer = sorted({row.part for row in rows}, key=_place_in_layer)
    layers = sorted({(row.layer, row.part) for row in rows}, key=lambda place: (place[0], _place_in_layer(place[1])))
    # The two networks of a Conformer's layer 3 are the columns 3.1 and 3.2.
    labels = [f"{layer}.{parts_of_layer.index(part) + 1}" if len(parts_of_layer) > 1 else str(layer) for layer, part in layers]
    experts = list(dict.fromkeys(row.expert for row in rows))
    routes = list(dict.fromkeys(row.route for row in rows))
    # The plan is the same in every layer of a stack, so a planned expert is framed even where it served nobody.
    planned = {(row.route, row.expert) for row in rows if row.planned}
    count: dict[tuple[tuple[int, str], str, str], int] = {}
    for row in rows:
        key = (row.layer, row.part), row.route, row.expert
        count[key] = count.get(key, 0) + row.utterances
    cell_px, row_px, gap_px, top_px = 44, 22, 10, 22
    # 6.6 px is the width of an average character at this size; a little too much room does no harm.
    route_px = int(max(len(route) for route in routes) * 6.6) + 14
    left_px = route_px + int(max(len(expert) for expert in experts) * 6.6) + 14
    parts = [
        f'<text class="layer" x="{left_px + column * cell_px + cell_px / 2:g}" y="14">{"layer " if column == 0 else ""}{label}</text>'
        for column, label in enumerate(labels)
    ]
    y = top_px
    for route in routes:
        parts.append(f'<text x="0" y="{y + 15}">{escape(route)}</text>')
        for expert in experts:
            parts.append(f'<text class="faint" x="{route_px}" y="{y + 15}">{escape(expert)}</text>')
            for column, layer in enumerate(layers):
                total = sum(count.get((layer, route, other), 0) for other in experts)
                here = count.get((layer, route, expert), 0)
                name = f"{route}, layer {labels[column]}, {expert}"
                parts.append(_cell(left_px + column * cell_px, y, here, total, (route, expert) in planned, name))
            y += row_px
        y += gap_px
    width_px, height_px = left_px + len(layers) * cell_px + 2, y - gap_px + 2
    size = f'width="{width_px}" height="{height_px}" viewBox="0 0 {width_px} {height_px}" style="max-width:none"'
    return f'<svg class="map" role="img" aria-label="Experts that served each route in the {escape(stack)}" {size}>{"".join(parts)}</svg>'


def _place_in_layer(part: str) -> tuple[bool, str]:
    """Sorts the networks of a layer as data meets them: `ffn` is the last."""
    return part == "ffn", part


def _cell(x: int, y: int, here: int, total: int, planned: bool, name: str) -> str:
    width_px, height_px = 40, 20
    box = f'x="{x + 1}" y="{y + 1}" width="{width_px}" height="{height_px}" rx="3"'
    tip = f"<title>{escape(name)}: {here:,} of {total:,} utterances{', planned' if planned else ''}</title>"
    frame = f'<rect class="frame{" planned" if planned else ""}" {box}/>'
    if not here:
        zero = f'<text class="value" x="{x + 1 + width_px / 2:g}" y="{y + 15}">0</text>' if planned else ""
        return f"<g>{tip}{frame}{zero}</g>"
    share = here / total
    percent = _share(here, total).removesuffix("\u202f%") + ("" if planned else "\u202f!")
    fill = f'<rect class="cell{"" if planned else " off"}" {box} fill-opacity="{0.15 + 0.85 * share:.2f}"/>'
    text = f'<text class="value{" on" if share > 0.5 else ""}" x="{x + 1 + width_px / 2:g}" y="{y + 15}">{percent}</text>'
    return f"<g>{tip}{fill}{frame}{text}</g>"


def _swaps(swaps: Sequence[Swap]) -> str:
    """Bars first, the right expert above every wrong one; then the numbers."""
    if not swaps:
        return html.section("swaps", "What a wrong expert costs", "", html.panel("No swap was measured."))
    maxima = {
        metric: html.nice_maximum([value for swap in swaps if swap.metric == metric for value in (swap.value, swap.right_value)])
        for metric in dict.fromkeys(swap.metric for swap in swaps)
    }
    panels = []
    for stack, route, metric in dict.fromkeys((swap.stack, swap.route, swap.metric) for swap in swaps):
        members = [swap for swap in swaps if (swap.stack, swap.route, swap.metric) == (stack, route, metric)]
        first = members[0]
        bars = [html.Bar(f"✓ {first.right}", first.right_value, html.value_text(first.right_value, first.unit), "good")]
        bars += [
            html.Bar(f"✗ {swap.used}", swap.value, html.value_text(swap.value, swap.unit), "bad" if harm(swap) > 0 else "plain")
            for swap in members
        ]
        width_px = int(max(len(bar.label) for bar in bars) * 7) + 10
        description = f"{stack}, {route}: " + ", ".join(f"{bar.label} {bar.text}" for bar in bars)
        chart = html.bar_chart(bars, maxima[metric], description, width_px)
        panels.append(html.panel(chart, escape(route), f"{stack} · {find_metric(metric).label}"))
    rows = [
        [
            escape(swap.route),
            escape(swap.stack),
            escape(swap.right),
            escape(swap.used),
            find_metric(swap.metric).label,
            html.value_text(swap.right_value, swap.unit),
            html.value_text(swap.value, swap.unit),
            _effect(swap),
            "" if swap.p_value == 1.0 else f"{swap.p_value:.2g}",
            f"{swap.utterances:,}",
        ]
        for swap in swaps
    ]
    header = ["Route", "Stack", "Right expert", "Used instead", "Metric", "Right", "Wrong", "Change", "p", "Utterances"]
    metrics = [(find_metric(name), maximum) for name, maximum in maxima.items()]
    scales = "; ".join(html.scale_text(metric.label, maximum, metric.lower_is_better) for metric, maximum in metrics)
    lead = f"Every route decoded again by the experts of other tags. Where that does no harm, the experts did not specialise. {scales}."
    lead += " p: how often chance favours the wrong expert as much, where it is better; small p over all swaps are findings."
    body = html.grid(panels) + html.panel(html.table(header, rows, numeric={5, 6, 7, 8, 9}))
    return html.section("swaps", "What a wrong expert costs", lead, body)


def _effect(swap: Swap) -> str:
    difference = swap.value - swap.right_value
    word, css = ("worse", "bad") if harm(swap) > 0 else ("better", "good") if harm(swap) < 0 else ("same", "")
    return f'<span class="t-{css}">{difference:+.1f}</span> <span class="muted small">{word}</span>'


def _parameters(parameters: Mapping[str, int]) -> str:
    total = parameters.get("total", 0)
    rows = []
    for name, number in parameters.items():
        share = _share(number, total)
        bar = html.bar_chart([html.Bar("", number, share, "wb")], max(total, 1), f"{name}: {share} of all", 0)
        rows.append([escape(name), f"{number:,}", bar])
    lead = "All weights, those that serve one utterance (active), and those of each expert over all its layers."
    body = html.panel(html.table(["Part", "Parameters", "Share of total"], rows, numeric={1}))
    return html.section("parameters", "Parameters", lead, body)


def _routes(report: AuditReport) -> str:
    rows = [[f'<span class="mono">{escape(route)}</span>', f"{cuts:,}"] for route, cuts in report.routes.items()]
    body = html.panel(html.table(["Route", "Cuts"], rows, numeric={1}), css="compact")
    body += f'<p class="small">Checkpoint: <code>{escape(report.checkpoint)}</code><br>Manifest: <code>{escape(report.manifest)}</code></p>'
    return html.section("routes", "Data", "What was audited.", body)
