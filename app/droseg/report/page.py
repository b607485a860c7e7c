"""report.html: one self-contained page, verdict first."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from html import escape
from importlib.metadata import PackageNotFoundError, version
from string import Template

from droseg import __version__
from droseg.metrics import is_false_positive, is_missed
from droseg.metrics.groups import ALL
from droseg.report.console import format_value, metric_label
from droseg.report.pictures import Picture
from droseg.report.plots import strip_plot
from droseg.report.style import CSS
from droseg.report.subgroups import MIN_PATIENTS
from droseg.report.tables import (
    axis_table,
    comparison_table,
    failures_table,
    full_table,
    structure_table,
)
from droseg.report.verdict import Evidence, group_name, verdict_paragraphs, worst_row

_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>$css</style>
</head>
<body>
<header>
<h1>$title</h1>
<p class="quiet">$subtitle</p>
<nav>$links</nav>
</header>
<main>
<section class="verdict">$verdict</section>
<div class="tiles">$tiles</div>
$sections
</main>
<footer>droseg $version. For research; not a medical device.</footer>
</body>
</html>
""")


def report_page(
    evidence: Evidence,
    pictures: Sequence[Picture],
    colors: dict[str, str],
    *,
    pictures_missing: str = "",
    notes: Sequence[str] = (),
    num_bootstrap: int = 2000,
    seed: int = 0,
) -> str:
    """Return the page as HTML.

    Args:
        evidence: what it is made from.
        pictures: of the worst cases.
        colors: structure -> color in the pictures.
        pictures_missing: why there are none at all.
        notes: what the reader must know about the input, e.g. that several seeds were averaged.
        num_bootstrap: samples behind the intervals.
        seed: of the bootstrap.
    """
    sections = [("where", "Where it fails", _where(evidence)), ("plots", "Every case", _plots(evidence))]
    sections.append(("cases", "Worst cases", _pictures(evidence, pictures, colors, pictures_missing)))
    if evidence.comparison is not None:
        sections.append(("baseline", f"Against {evidence.baseline_name}", _comparison(evidence)))
    sections.append(("failures", "Missed and false-positive structures", _failures(evidence)))
    sections.append(("tables", "All tables", _all_tables(evidence)))
    sections.append(("how", "How this was computed", _how(evidence, notes, num_bootstrap, seed)))
    title = f"Subgroup report: {evidence.name}"
    if evidence.comparison is not None:
        title += f" against {evidence.baseline_name}"
    return _PAGE.substitute(
        title=escape(title),
        css=CSS,
        subtitle=_subtitle(evidence),
        links="".join(f'<a href="#{name}">{escape(heading)}</a>' for name, heading, _ in sections),
        verdict="".join(f"<p>{paragraph}</p>" for paragraph in verdict_paragraphs(evidence)),
        tiles=_tiles(evidence),
        sections="".join(
            f'<section id="{name}"><h2>{escape(heading)}</h2>{body}</section>' for name, heading, body in sections
        ),
        version=__version__,
    )


def _subtitle(evidence: Evidence) -> str:
    counts = evidence.cases[["case_id", "patient_id", "structure"]].nunique()
    axes = ", ".join(evidence.axes) or "no axis"
    return (
        f"{counts['case_id']} cases of {counts['patient_id']} patients, {counts['structure']} structures, "
        f"grouped by {escape(axes)}"
    )


def _tiles(evidence: Evidence) -> str:
    metric = evidence.main_metric
    label = metric_label(metric)
    tiles = []
    for row in evidence.groups(metric, ALL):
        tiles.append((format_value(row["mean"], metric), f"mean {label}, all cases"))
    groups = evidence.groups(metric)
    if groups:
        worst = worst_row(groups, metric)
        tiles.append((format_value(worst["mean"], metric), f"mean {label}, worst group: {group_name(worst)}"))
    for row in evidence.groups(metric, ALL):
        tiles.append((format_value(row["worst"], metric), f"{label} of the worst case"))
    missed, false_positive = int(is_missed(evidence.cases).sum()), int(is_false_positive(evidence.cases).sum())
    tiles.append((f"{missed} / {false_positive}", "structures missed / false positive"))
    return "".join(f'<div class="tile"><b>{value}</b><span>{text}</span></div>' for value, text in tiles)


def _where(evidence: Evidence) -> str:
    if not evidence.axes:
        return "<p>No group axis was given. Name the columns to group by: <code>--group-by COLUMN</code>.</p>"
    parts = [
        "<p class='note'>Failures count here: a missed or false-positive structure has Dice 0, and the image diagonal "
        "as distance. Means over structures; the worst group of an axis is marked. "
        f"Intervals need at least {MIN_PATIENTS} patients.</p>"
    ]
    for axis in evidence.axes:
        parts.append(f"<h3>By {escape(axis)}</h3>{axis_table(evidence, axis)}")
        without = evidence.cases.loc[evidence.cases[axis].isna(), "case_id"].nunique()
        if without:
            parts.append(f"<p class='note'>{without} cases have no value of {escape(axis)} and are left out here.</p>")
        metric = metric_label(evidence.main_metric)
        parts.append(f"<p class='note'>Mean {metric} per structure; the darker, the worse.</p>")
        parts.append(structure_table(evidence, axis))
    return "".join(parts)


def _plots(evidence: Evidence) -> str:
    names = (evidence.name, evidence.baseline_name)
    legend = [
        f'<span><svg viewBox="0 0 14 14" class="run0"><circle cx="7" cy="7" r="4"/></svg>{escape(names[0])}</span>'
    ]
    if evidence.baseline is not None:
        legend.append(
            '<span><svg viewBox="0 0 14 14" class="run1"><path d="M7 2l5 5-5 5-5-5z"/></svg>'
            + f"{escape(names[1])}</span>"
        )
    legend.append(
        '<span><svg viewBox="0 0 14 14" class="run0"><path class="failed" d="M3 3l8 8m0-8l-8 8"/></svg>'
        "a structure missed or false positive</span>"
        "<span>box: quartiles and median; line: 5th to 95th percentile</span>"
    )
    figures = "".join(
        f"<figure><h3>{escape(metric_label(metric))}</h3>"
        f"{strip_plot(evidence.cases, evidence.baseline, evidence.axes, metric, names)}</figure>"
        for metric in evidence.metrics
    )
    note = (
        "<p class='note'>Each mark is one case, the mean over its structures; hover (or long-press) for its name.</p>"
    )
    return f'{note}<div class="legend">{"".join(legend)}</div><div class="plots">{figures}</div>'


def _pictures(evidence: Evidence, pictures: Sequence[Picture], colors: dict[str, str], missing: str) -> str:
    if missing:
        return f"<p>No pictures: {escape(missing)}</p>"
    metric = evidence.main_metric
    legend = "".join(
        f'<span><i class="swatch" style="background: {color}"></i>{escape(name)}</span>'
        for name, color in colors.items()
    )
    note = (
        "<p class='note'>The slice with most wrong voxels of the case's worst structure, which is outlined in white. "
        "Axial and coronal slices show the patient's right on the left, sagittal ones the front.</p>"
    )
    return (
        f'{note}<div class="legend">{legend}</div><div class="cases">'
        + "".join(_picture(picture, metric) for picture in pictures)
        + "</div>"
    )


def _picture(picture: Picture, metric: str) -> str:
    value, own = format_value(picture.value, metric), format_value(picture.structure_value, metric)
    head = f"<h3>{escape(picture.case_id)}</h3>"
    label = metric_label(metric)
    text = f"{label} {value}; worst: <b>{escape(picture.structure)}</b>, {own}"
    if picture.problem:
        problem = f'<p class="note">No picture: {escape(picture.problem)}</p>'
        return f'<div class="case">{head}<p>{text}</p>{problem}</div>'
    panels = "".join(
        f'<figure><img src="{uri}" alt="{escape(picture.case_id)}, {caption}">'
        f"<figcaption>{caption}</figcaption></figure>"
        for caption, uri in picture.panels
    )
    where = f'<span class="quiet">{escape(picture.where)}</span>'
    return f'<div class="case">{head}<p>{text} · {where}</p><div class="panels">{panels}</div></div>'


def _comparison(evidence: Evidence) -> str:
    comparison = evidence.comparison
    if comparison is None:
        return ""
    limits = ", ".join(
        f"{metric_label(m)} {format_value(v, m)}" for m, v in comparison.min_effect.items() if m in evidence.metrics
    )
    parts = [
        f"<p class='note'>Run: {escape(evidence.name)}; baseline: {escape(evidence.baseline_name)}. Paired by case, "
        "run minus baseline, failures counted. <b>Helped</b> or <b>hurt</b>: the 95 % interval of the mean difference "
        "excludes 0 and the difference is at least the minimum effect "
        f"({escape(limits)}); anything else is <b>inconclusive</b>. The intervals are not corrected for the number of "
        "groups and metrics.</p>"
    ]
    for metric in evidence.metrics:
        parts.append(f"<h3>{escape(metric_label(metric))}</h3>{comparison_table(evidence, metric)}")
    for cases, name in ((comparison.only_run, evidence.name), (comparison.only_baseline, evidence.baseline_name)):
        if cases:
            shown = ", ".join(map(escape, cases))
            parts.append(f"<p>Only in {escape(name)}, and left out of the comparison ({len(cases)}): {shown}.</p>")
    return "".join(parts)


def _failures(evidence: Evidence) -> str:
    if not (is_missed(evidence.cases) | is_false_positive(evidence.cases)).any():
        return "<p>None: every structure of the references was found at least in part, and no other was predicted.</p>"
    return (
        "<p class='note'>Missed: the reference has the structure, the prediction does not. False positive: "
        f"the reverse.</p>{failures_table(evidence)}"
    )


def _all_tables(evidence: Evidence) -> str:
    parts = [
        "<details><summary>Subgroups (subgroups.csv)</summary><p class='note'>Undefined values are left out of the "
        f"statistics and counted.</p>{full_table(evidence.subgroups)}</details>",
        "<details><summary>Subgroups with failures counted</summary><p class='note'>What the verdict uses.</p>"
        f"{full_table(evidence.penalized)}</details>",
    ]
    if evidence.comparison is not None:
        parts.append(
            "<details><summary>Differences to the baseline (comparison.csv)</summary>"
            f"{full_table(evidence.comparison.table)}</details>"
        )
    return "".join(parts)


def _how(evidence: Evidence, notes: Sequence[str], num_bootstrap: int, seed: int) -> str:
    diagonal = "the diagonal of the image"
    if "diagonal_mm" not in evidence.cases.columns:
        diagonal = "the largest finite distance of that metric in the table, which has no column diagonal_mm"
        if evidence.baseline is not None:
            diagonal += " (in the comparison: in both tables, so that a failure costs the same in both)"
    facts = [
        (
            "Metrics",
            "In mm of each case's own grid. HD: larger of the two directed maxima between surface voxels; HD95: of the "
            "two directed 95th percentiles; ASSD: mean over the surface voxels of both; NSD: share of them within the "
            "tolerance. Where the table comes from other software, its definitions hold.",
        ),
        (
            "Empty masks",
            "Reference and prediction both empty: undefined, out of scope. Only one empty: Dice and NSD are 0, "
            "distances undefined.",
        ),
        (
            "Failures counted",
            "In the verdict, the tables under Where it fails, the worst cases and all comparisons, a missed or "
            f"false-positive structure has Dice and NSD 0, and as distance {diagonal}. subgroups.csv leaves undefined "
            "values out of its statistics and counts them (n_undefined, n_missed).",
        ),
        ("Mean over structures", "Per case first, then over cases."),
        (
            "Intervals",
            f"95 % percentile bootstrap of the mean, {num_bootstrap} samples of patients, seed {seed}; none below "
            f"{MIN_PATIENTS} patients.",
        ),
        *((f"Note {i}", note) for i, note in enumerate(notes, start=1)),
        ("Versions", _versions()),
    ]
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts) + "</dl>"


def _versions() -> str:
    names = [f"droseg {__version__}", f"Python {platform.python_version()}"]
    for package in ("numpy", "scipy", "pandas", "nibabel"):
        try:
            names.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(names)
