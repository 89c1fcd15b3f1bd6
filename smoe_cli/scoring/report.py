"""The score report: one HTML page that shows how good a system is, where, and what its errors look like."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from smoe_cli import html
from smoe_cli.errors import DataError
from smoe_cli.html import escape
from smoe_cli.records import Hypothesis, Score, ScoreReport, SliceScores
from smoe_cli.scoring.align import Alignment, EditKind, Unit, align, confusions
from smoe_cli.scoring.metrics import find_metric
from smoe_cli.scoring.slices import MAIN_SUBSET, SliceKey, group
from smoe_cli.tags import ANY, Bandwidth, shown_tags

Groups = Mapping[SliceKey, Sequence[Hypothesis]]
Alignments = Mapping[SliceKey, Sequence[Alignment]]

EXAMPLES_PER_SLICE = 50
CONFUSIONS_PER_LANGUAGE = 15
NOTHING = "∅"
"""Stands for the missing side of a word that was left out or made up."""

STYLE = """
.matrix td,.matrix th[scope=row]{vertical-align:middle}
.matrix svg{min-width:17rem}
.score b{font-size:1.45rem;font-weight:650;white-space:nowrap}.score .small{display:block;white-space:nowrap}
.legend>span{margin-right:1.1rem;white-space:nowrap}
details.slice{background:var(--card);border:1px solid var(--line);border-radius:12px;margin:.7rem 0}
details.slice>summary{cursor:pointer;padding:.75rem 1.1rem;display:flex;flex-wrap:wrap;gap:.2rem 1rem;align-items:baseline}
details.slice>summary::before{content:"▸";color:var(--muted)}details.slice[open]>summary::before{content:"▾"}
summary .right{margin-left:auto}
.examples{list-style:none;margin:0;padding:0 1.1rem .4rem}
.example{border-top:1px solid var(--line);padding:.7rem 0}
.example .head{display:flex;flex-wrap:wrap;gap:.1rem .9rem;align-items:baseline;font-size:.84rem;color:var(--muted)}
.example .head b{color:var(--ink)}
.line{display:grid;grid-template-columns:3.6rem 1fr;margin-top:.2rem}
.line>:first-child{color:var(--muted);font-size:.8rem;padding-top:.15rem}
.text{overflow-wrap:anywhere;line-height:1.75}
.edit{border-radius:4px;padding:.05rem .25rem}
.del{background:var(--del-bg);color:var(--bad)}.ins{background:var(--ins-bg);color:var(--wb)}ins{text-underline-offset:3px}
.sub{background:var(--sub-bg);color:var(--warn)}.sub b{font-weight:650}
.tools{display:flex;flex-wrap:wrap;gap:.8rem;align-items:center;margin:.8rem 0}
.tools input,.tools select{font:inherit;font-size:.92rem;padding:.35rem .6rem;border:1px solid var(--line);border-radius:8px;
background:var(--card);color:var(--ink)}
.tools label{display:inline-flex;gap:.5rem;align-items:center;font-size:.92rem}
.tools input{width:min(19rem,60vw)}
"""

# Sorting and searching are comfort: without JavaScript the tools stay hidden and the examples are already in order.
SCRIPT = """
(function () {
  var tools = document.getElementById("tools"), find = document.getElementById("find"), order = document.getElementById("order");
  var slices = Array.prototype.slice.call(document.querySelectorAll("details.slice"));
  function examples(slice) { return Array.prototype.slice.call(slice.querySelectorAll(".example")); }
  function search() {
    var wanted = find.value.trim().toLowerCase();
    slices.forEach(function (slice) {
      var hits = 0;
      examples(slice).forEach(function (example) {
        var hit = !wanted || example.textContent.toLowerCase().indexOf(wanted) >= 0;
        example.hidden = !hit;
        hits += hit ? 1 : 0;
      });
      slice.hidden = hits === 0;
      if (wanted && hits) { slice.open = true; }
    });
  }
  function sort() {
    var key = order.value;
    slices.forEach(function (slice) {
      var list = slice.querySelector(".examples");
      examples(slice).sort(function (a, b) {
        if (key === "id") { return a.dataset.id < b.dataset.id ? -1 : 1; }
        return b.dataset[key] - a.dataset[key];
      }).forEach(function (example) { list.appendChild(example); });
    });
  }
  find.addEventListener("input", search);
  order.addEventListener("change", sort);
  tools.addEventListener("submit", function (event) { event.preventDefault(); });
  tools.hidden = false;
})();
"""

TOOLS = """<form class="tools" id="tools" hidden>
<label>Find <input id="find" type="search" placeholder="a word, speaker or utterance"></label>
<label>Sort by <select id="order"><option value="rate">share of wrong words</option><option value="errors">number of wrong words</option>
<option value="duration">duration</option><option value="id">utterance</option></select></label>
</form>"""

LEGEND = """<p class="legend small"><span><span class="edit del">−<del>word</del></span> left out</span>
<span><span class="edit ins">+<ins>word</ins></span> made up</span>
<span><span class="edit sub">written→<b>right</b></span> one word for another</span></p>"""


def score_report_html(report: ScoreReport, hypotheses: Sequence[Hypothesis]) -> str:
    """Render a score report with examples.

    Args:
        report: What `slices.score` returned.
        hypotheses: The hypotheses it was computed from.

    Returns:
        A self-contained page.

    Raises:
        DataError: If the hypotheses are not those of the report.
        ConfigError: If the report has a metric that is not in the metrics table.
    """
    groups = group(hypotheses)
    if {key: len(members) for key, members in groups.items()} != {_key(part): part.utterances for part in report.slices}:
        raise DataError(f"the hypotheses are not those that the scores of `{report.system}` were computed from", "run `smoe score` again")
    alignments = {_key(part): align(groups[_key(part)], find_metric(part.scores[0].metric).shows) for part in report.slices}
    hours = sum(part.hours for part in report.slices)
    subsets = list(dict.fromkeys(part.subset for part in report.slices))
    truncated = sum(part.truncated for part in report.slices)
    overview = [
        (f"{len(hypotheses):,}", "utterances scored"),
        (html.duration_text(hours), "of audio decoded"),
        (f"{len({found.speaker for found in hypotheses if found.speaker}):,}", "speakers named"),
        (f"{len(report.slices):,}", "slices"),
        (f"{truncated:,}", "cut off by the length limit"),
    ]
    body = html.cards(overview) + _results(report, subsets) + _confusions(report, alignments)
    body += _examples(report, groups, alignments) + _fine_print(report)
    return html.page(
        title=report.system,
        kicker="Score report",
        subtitle=(f"Model {report.model}. " if report.model else "")
        + "Scored apart: "
        + ", ".join(subset or MAIN_SUBSET for subset in subsets),
        notes=report.notes,
        links=[("results", "Results"), ("confusions", "Confusions"), ("examples", "Examples"), ("fine-print", "Signatures and versions")],
        body_html=body,
        style=STYLE,
        script=SCRIPT,
    )


def _key(part: SliceScores) -> SliceKey:
    return SliceKey(part.subset, part.task, part.lang, part.bandwidth, tuple(sorted(part.tags.items())))


def _results(report: ScoreReport, subsets: Sequence[str]) -> str:
    """One panel per subset: task, language and tags by bandwidth, with a chart; bars of a metric share one scale over the page."""
    of_metric: dict[str, list[float]] = {}
    for part in report.slices:
        of_metric.setdefault(part.scores[0].metric, []).append(part.scores[0].value)
    maxima = {name: html.nice_maximum(values) for name, values in of_metric.items()}
    by_key = {_key(part): part for part in report.slices}
    panels = []
    for subset in subsets:
        rows = []
        keys = [_key(part) for part in report.slices if part.subset == subset]
        for task, lang, tags in dict.fromkeys((key.task, key.lang, key.tags) for key in keys):
            parts = {band: by_key.get(SliceKey(subset, task, lang, band, tags)) for band in Bandwidth}
            cells = [_score_cell(part) for part in parts.values()]
            name = " ".join(filter(None, (task, lang, shown_tags(dict(tags)))))
            rows.append([_arrow(task, lang, dict(tags)), *cells, _band_chart(name, parts, maxima)])
        header = ["Task", "Narrowband (NB)", "Wideband (WB)", "Headline metric, NB against WB"]
        members = [part for part in report.slices if part.subset == subset]
        size = f"{sum(part.utterances for part in members):,} utterances, {html.duration_text(sum(part.hours for part in members))}"
        panels.append(html.panel(html.table(header, rows), escape(subset or MAIN_SUBSET), size, "matrix"))
    metrics = [(find_metric(name), maximum) for name, maximum in maxima.items()]
    scales = "; ".join(html.scale_text(metric.label, maximum, metric.lower_is_better) for metric, maximum in metrics)
    return html.section("results", "Results", f"Bars of one metric share one scale on the whole page: {scales}.", "".join(panels))


def _arrow(task: str, lang: str, tags: Mapping[str, str] = MappingProxyType({})) -> str:
    """`translate → de`, with tags of the recipe's own axes; a task that answers with a label has no language."""
    target = "" if lang == ANY else f' <span class="muted">→</span> {escape(lang)}'
    return escape(task) + target + (f' <span class="small muted">{escape(shown_tags(tags))}</span>' if tags else "")


def _score_cell(part: SliceScores | None) -> str:
    if part is None:
        return '<span class="muted small">not scored</span>'
    headline, *others = part.scores
    label = find_metric(headline.metric).label
    wrong = [f"{headline.errors:,} of {headline.total:,} wrong"] if find_metric(headline.metric).shows is Unit.ANSWER else []
    rest = " · ".join(wrong + [f"{find_metric(score.metric).label} {html.value_text(score.value, score.unit)}" for score in others])
    counts = {"synthetic": part.synthetic, "cut off": part.truncated, "with a label never seen in training": part.unseen}
    size = f"{part.utterances:,} utt. · {html.duration_text(part.hours)}"
    size += "".join(f" · {count:,} {name}" for name, count in counts.items() if count)
    return (
        f'<span class="score"><b>{html.value_text(headline.value, headline.unit)}</b> <span class="muted">{label}</span>'
        f'<span class="small">{rest}</span><span class="small muted">{size}</span></span>'
    )


def _band_chart(name: str, parts: Mapping[Bandwidth, SliceScores | None], maxima: Mapping[str, float]) -> str:
    headlines: dict[Bandwidth, Score] = {band: part.scores[0] for band, part in parts.items() if part is not None}
    metric = next(iter(headlines.values())).metric
    bars = [html.Bar(band.upper(), score.value, html.value_text(score.value, score.unit), band.value) for band, score in headlines.items()]
    values = ", ".join(f"{bar.label} {bar.text}" for bar in bars)
    return html.bar_chart(bars, maxima[metric], f"{name}, {find_metric(metric).label}: {values}")


def _confusions(report: ScoreReport, alignments: Alignments) -> str:
    """Commonest errors per task and language, subsets and tags pooled, bands apart: words, or whole labels."""
    panels = []
    unit_of = {(part.task, part.lang): find_metric(part.scores[0].metric).shows for part in report.slices}
    for (task, lang), unit in unit_of.items():
        counts: dict[str, Counter[tuple[str, str]]] = {band: Counter() for band in Bandwidth}
        for key, members in alignments.items():
            if (key.task, key.lang) == (task, lang):
                counts[key.bandwidth] += confusions(members)
        total = counts[Bandwidth.NB] + counts[Bandwidth.WB]
        commonest = sorted(total, key=lambda pair: (-total[pair], pair))[:CONFUSIONS_PER_LANGUAGE]
        rows = [
            [*(escape(word or NOTHING) for word in pair), *(f"{counts[band][pair]:,}" for band in Bandwidth), f"{total[pair]:,}"]
            for pair in commonest
        ]
        content = (
            html.table(["right", "written", "NB", "WB", "both"], rows, numeric={2, 3, 4}) if rows else f"<p>Not one {unit} is wrong.</p>"
        )
        panels.append(html.panel(content, _arrow(task, lang), css="compact"))
    lead = (
        "Where the text differs most often from its nearest reference, by words, or by whole answers where these are labels; all subsets "
        "together. "
        f"{NOTHING} stands for a word left out or made up. In a translation another word need not be a wrong one."
    )
    return html.section("confusions", "Commonest confusions", lead, html.grid(panels))


def _examples(report: ScoreReport, groups: Groups, alignments: Alignments) -> str:
    slices = []
    for number, part in enumerate(report.slices):
        key = _key(part)
        pairs = sorted(zip(groups[key], alignments[key], strict=True), key=lambda pair: (-pair[1].error_rate, -pair[1].errors, pair[0].id))
        shown = pairs[:EXAMPLES_PER_SLICE]
        headline, band = part.scores[0], escape(part.bandwidth)
        count = f"the worst {len(shown):,} of {len(pairs):,}" if len(shown) < len(pairs) else f"all {len(pairs):,}"
        result = f"{find_metric(headline.metric).label} {html.value_text(headline.value, headline.unit)}"
        summary = (
            f'<b>{_arrow(part.task, part.lang, part.tags)} · <span class="t-{band}">{band.upper()}</span></b>'
            f'<span class="muted">{escape(part.subset or MAIN_SUBSET)}</span>'
            f'<span class="right">{result}</span><span class="muted small">{count}</span>'
        )
        items = "\n".join(_example(hypothesis, found, find_metric(headline.metric).shows) for hypothesis, found in shown)
        opened = " open" if number == 0 else ""
        slices.append(f'<details class="slice"{opened}><summary>{summary}</summary>\n<ol class="examples">{items}</ol></details>\n')
    lead = "Per slice the utterances with the largest share of wrong words, or a wrong label, against the nearest reference; worst first."
    return html.section("examples", "Examples", lead, LEGEND + TOOLS + "".join(slices))


def _example(hypothesis: Hypothesis, found: Alignment, unit: Unit) -> str:
    head = [f'<b class="mono">{escape(hypothesis.utterance)}</b>', f"{hypothesis.duration_s:.1f}\u202fs"]
    head += [f"speaker {escape(hypothesis.speaker)}"] if hypothesis.speaker else []
    wrong = f"{found.errors} wrong of {found.total} words ({100 * found.error_rate:.0f}\u202f%)" if unit is Unit.WORD else "wrong"
    head.append(wrong if found.errors else "no errors" if unit is Unit.WORD else "right")
    head += [f"nearest of {len(hypothesis.references)} references"] if len(hypothesis.references) > 1 else []
    head += [html.badge("a label never seen in training", "warn")] if hypothesis.unseen else []
    head += [html.badge("cut off by the length limit", "bad")] if hypothesis.stopped == "length" else []
    head += [html.badge("wrote nothing", "bad")] if not hypothesis.text.strip() else []
    keys = {"rate": f"{found.error_rate:.4f}", "errors": found.errors, "duration": f"{hypothesis.duration_s:.3f}", "id": hypothesis.id}
    data = " ".join(f'data-{name}="{escape(value)}"' for name, value in keys.items())
    # dir=auto: right-to-left languages read in their own direction.
    attributes = f'class="text" dir="auto" lang="{escape(hypothesis.lang)}"'
    right = f'<div class="line"><span>right</span><span {attributes}>{escape(found.reference)}</span></div>' if found.errors else ""
    return (
        f'<li class="example" {data}><div class="head">{"".join(f"<span>{item}</span>" for item in head)}</div>{right}'
        f'<div class="line"><span>written</span><span {attributes}>{_edits_html(found)}</span></div></li>'
    )


def _edits_html(found: Alignment) -> str:
    """The hypothesis with its errors marked by sign and style, not by colour alone."""
    words: list[str] = []
    for edit in found.edits:
        if edit.kind is EditKind.EQUAL:
            words.append(escape(" ".join(edit.reference)))
        elif edit.kind is EditKind.DELETE:
            words += [f'<span class="edit del">−<del>{escape(word)}</del></span>' for word in edit.reference]
        elif edit.kind is EditKind.INSERT:
            words += [f'<span class="edit ins">+<ins>{escape(word)}</ins></span>' for word in edit.hypothesis]
        else:
            words += [
                f'<span class="edit sub">{escape(written)}→<b>{escape(right)}</b></span>'
                for right, written in zip(edit.reference, edit.hypothesis, strict=True)
            ]
    return " ".join(words)


def _fine_print(report: ScoreReport) -> str:
    signatures: dict[tuple[str, str], list[SliceScores]] = {}
    for part in report.slices:
        for score in part.scores:
            signatures.setdefault((score.metric, score.signature), []).append(part)
    rows = []
    for (metric, signature), parts in signatures.items():
        languages = ", ".join(dict.fromkeys(part.task if part.lang == ANY else f"{part.task} → {part.lang}" for part in parts))
        rows.append([find_metric(metric).label, f"<code>{escape(signature)}</code>", escape(languages)])
    versions = " · ".join(f"{escape(name)} {escape(number)}" for name, number in report.versions.items())
    files = "".join(f"<br><code>{escape(file)}</code>" for file in report.hypotheses)
    body = html.panel(html.table(["Metric", "Signature", "Used for"], rows))
    decoding = "".join(f"<br><code>{escape(signature)}</code>" for signature in report.decoding)
    body += f'<p class="small">Versions: {versions}</p><p class="small">Hypotheses:{files}</p>'
    body += f'<p class="small">Decoded with:{decoding}</p>' if decoding else ""
    body += f'<p class="small">Texts, before they were scored: {escape(report.text)}</p>' if report.text else ""
    return html.section("fine-print", "Signatures and versions", "Quote a score together with its signature.", body)
