"""report.html: one self-contained page, verdict first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from string import Template

from droseg import __version__
from droseg.metrics.groups import ALL
from droseg.report import sections
from droseg.report.changes import comparison_section
from droseg.report.console import format_value, metric_label
from droseg.report.evidence import Evidence, worst_row
from droseg.report.failures import failures, failures_text
from droseg.report.method import method_facts
from droseg.report.pictures import Picture
from droseg.report.style import CSS
from droseg.report.verdict import group_name, verdict_paragraph
from droseg.report.worst import worst_section

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
$tiles
$sections
</main>
<footer>droseg $version. For research; not a medical device.</footer>
</body>
</html>
""")


def report_page(
    runs: Sequence[Evidence],
    pictures: Sequence[Picture] = (),
    colors: Mapping[str, str] | None = None,
    *,
    pictures_missing: str = "",
    hidden: Sequence[Mapping[str, object]] | None = None,
    notes: Sequence[str] = (),
) -> str:
    """Return the page as HTML.

    Args:
        runs: what it is made from; all have the same reference, if any.
        pictures: of the worst cases of the first run.
        colors: structure -> color in the pictures.
        pictures_missing: why there are none at all.
        hidden: hidden subgroups, see `sections.hidden_section`; None if no one searched.
        notes: what the reader must know about the input, e.g. which files.
    """
    first = runs[0]
    parts = [("where", "Where it fails", sections.where(runs))]
    if hidden is not None:
        parts.append(("hidden", "Hidden subgroups", sections.hidden_section(hidden)))
    parts.append(("plots", "Every case", sections.plots(runs)))
    worst = worst_section(first, pictures, colors or {}, pictures_missing)
    parts.append(("cases", "Worst cases", worst))
    if first.reference is not None:
        parts.append(("baseline", f"Against {first.baseline_name}", comparison_section(runs)))
    parts.append(("failures", "Missed and false-positive structures", sections.failures_section(runs)))
    parts.append(("tables", "All tables", sections.tables_section(runs)))
    parts.append(("how", "How this was computed", _how(runs, notes)))
    title = f"Subgroup report: {', '.join(run.name for run in runs)}"
    if first.reference is not None:
        title += f" against {first.baseline_name}"
    return _PAGE.substitute(
        title=escape(title),
        css=CSS,
        subtitle=_subtitle(first),
        links="".join(f'<a href="#{name}">{escape(heading)}</a>' for name, heading, _ in parts),
        verdict="".join(f"<p>{verdict_paragraph(run)}</p>" for run in runs),
        tiles=f'<div class="tiles">{_tiles(first)}</div>'
        if len(runs) == 1 and first.reference is None
        else sections.summary(runs),
        sections="".join(
            f'<section id="{name}"><h2>{escape(heading)}</h2>{body}</section>' for name, heading, body in parts
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
    groups = evidence.ranked(metric)
    if groups:
        worst = worst_row(groups, metric)
        tiles.append((format_value(worst["mean"], metric), f"mean {label}, worst group: {group_name(worst)}"))
    for row in evidence.groups(metric, ALL):
        tiles.append((format_value(row["worst"], metric), f"{label} of the worst case"))
    tiles.append((failures_text(evidence.cases), f"structures {' / '.join(failures(evidence.cases))}"))
    return "".join(f'<div class="tile"><b>{value}</b><span>{text}</span></div>' for value, text in tiles)


def _how(runs: Sequence[Evidence], notes: Sequence[str]) -> str:
    facts = method_facts(runs, notes)
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts) + "</dl>"
