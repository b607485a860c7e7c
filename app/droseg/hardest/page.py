"""hardest.html: one self-contained page; first the labels that look wrong, then what is hard though it looks right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from string import Template
from typing import Any

import pandas as pd

from droseg import __version__
from droseg.hardest.flag import LEAST_SURE, STRUCTURE_SHARE, TOTAL_SHARE
from droseg.hardest.pictures import PANELS, PlanePictures
from droseg.hardest.volumes import BAND_VOXELS
from droseg.report.style import CSS
from droseg.report.tables import html_table

_CSS = """
.curve { max-width: 520px; margin: 6px 0 2px; }
.curve .usual { fill: var(--line); stroke: none; }
.curve .usual-median { stroke: var(--quiet); stroke-dasharray: 4 3; fill: none; }
.curve polyline.own { stroke: var(--accent); stroke-width: 1.5; fill: none; }
.curve circle.own { fill: var(--accent); }
.case.flagged { border-top-color: var(--bad); }
.reason { color: var(--bad); font-weight: 600; }
.case .panels { margin-top: 10px; }
.case .panels + .panels { margin-top: 4px; }
"""
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


@dataclass(frozen=True)
class ShownCase:
    """One case of the page: its row of the table, its slices, its loss curve as SVG (or nothing)."""

    row: Mapping[str, Any]
    planes: Sequence[PlanePictures]
    curve: str


def hardest_page(
    name: str,
    subtitle: str,
    table: pd.DataFrame,
    shown: Sequence[ShownCase],
    colors: Mapping[str, str],
    axes: Sequence[str],
    ranked_by: str,
    judge: str,
    doubts: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> str:
    """Return the page as HTML.

    Args:
        name: of the run.
        subtitle: what was measured.
        table: see `hardest_table`.
        shown: the cases with pictures: the flagged ones by their score, the others by their rank.
        colors: structure -> color in the pictures.
        axes: group axes.
        ranked_by: which loss, in words.
        judge: the network of the Dice, the pictures and the flags, in words.
        doubts: why the labels cannot be judged yet.
        notes: what the reader must know besides.
    """
    flagged = [case for case in shown if case.row["flag"]]
    others = [case for case in shown if not case.row["flag"]]
    num_flagged = int((table["flag"] != "").sum())
    legend, parts = _legend(colors), []
    if num_flagged:
        cards = _cards(flagged, axes, num_flagged - len(flagged))
        parts.append(("flagged", "Labels that look wrong", legend + cards))
        legend = ""
    parts.append(("hard", "Hard, though the label looks right", legend + _cards(others, axes)))
    failed = table[table["problem"] != ""]
    if len(failed):
        parts.append(("problems", "Not measured", _problems(failed)))
    parts.append(("all", "All cases", _all_cases(table, axes)))
    parts.append(("how", "How this was computed", _how(ranked_by, judge, notes)))
    return _PAGE.substitute(
        title=escape(f"Hardest training cases: {name}"),
        css=CSS + _CSS,
        subtitle=escape(subtitle),
        links="".join(f'<a href="#{key}">{escape(heading)}</a>' for key, heading, _ in parts),
        # A network that knows too little to judge labels says nothing by calling none of them wrong.
        verdict=("" if doubts and not num_flagged else _verdict(table, num_flagged))
        + "".join(f"<p>{escape(doubt)}</p>" for doubt in doubts),
        tiles=_tiles(table, num_flagged),
        sections="".join(f'<section id="{key}"><h2>{escape(head)}</h2>{body}</section>' for key, head, body in parts),
        version=__version__,
    )


def _verdict(table: pd.DataFrame, num_flagged: int) -> str:
    measured = int(table["rank"].notna().sum())
    if not num_flagged:
        return (
            f"<p>None of the {measured} labels looks wrong: wherever the network is sure of another structure than a "
            "label, little of it lies away from a border. What is hard here is hard for another reason, such as a rare "
            "anatomy or a poor image, unless the network has learned a wrong label by heart.</p>"
        )
    hardest = table[table["flag"] != ""]
    among = int((hardest["rank"] <= max(1, round(0.1 * measured))).sum())
    labels = "label looks" if num_flagged == 1 else "labels look"
    return (
        f"<p><b>{num_flagged} of {measured} {labels} wrong</b>: in a good part of it, away from any border, the "
        f"network is sure of another structure. {among} of them {'is' if among == 1 else 'are'} among the hardest "
        "10&nbsp;%. Look at these labels first. The cases below them are hard though their labels look right: those "
        "robust training is for, unless the network has learned a wrong label by heart.</p>"
    )


def _tiles(table: pd.DataFrame, num_flagged: int) -> str:
    loss, dice = table["loss"].dropna(), table["dice_mean"].dropna()
    tiles = [
        (str(len(loss)), "training cases measured"),
        (str(num_flagged), "labels that look wrong"),
        (_number(loss.median()), "median loss"),
        (_number(loss.max()), "largest loss"),
        (_number(dice.median(), 2), "median Dice"),
    ]
    return "".join(f'<div class="tile"><b>{value}</b><span>{text}</span></div>' for value, text in tiles)


def _cards(cases: Sequence[ShownCase], axes: Sequence[str], more: int = 0) -> str:
    hidden = f'<p class="note">{more} more are in the table below; --top shows more.</p>' if more else ""
    body = "".join(_card(case, axes) for case in cases)
    return f'<div class="cases">{body}</div>{hidden}' if cases else f"<p>None shown.</p>{hidden}"


def _legend(colors: Mapping[str, str]) -> str:
    names = "".join(
        f'<span><i class="swatch" style="background: {color}"></i>{escape(name)}</span>'
        for name, color in colors.items()
    )
    return (
        "<p class='note'>Slices through most of what network and label disagree on. Outlined in red: where the network "
        "is sure of another structure, away from any border. Axial and coronal slices show the patient's right on the "
        f'left, sagittal ones the front.</p><div class="legend">{names}</div>'
    )


def _card(case: ShownCase, axes: Sequence[str]) -> str:
    row, name = case.row, escape(str(case.row["case_id"]))
    groups = ", ".join(escape(str(row[axis])) for axis in axes if pd.notna(row[axis]))
    facts = [f"loss <b>{_number(row['loss'])}</b>", f"Dice {_number(row['dice_mean'], 2)}"]
    if pd.notna(row["visits"]):
        facts.append(f"drawn {row['visits']} times ({100 * row['draw_share']:.2g}&nbsp;% of the draws)")
    reason = f'<p class="reason">{escape(str(row["flag_reason"]))}</p>' if row["flag"] else ""
    panels = "".join(
        '<div class="panels">'
        + "".join(
            f'<figure><img src="{uri}" alt="{name}, {plane.plane} {panel}">'
            f"<figcaption>{f'{plane.plane} {panel}' if panel == PANELS[0] else panel}</figcaption></figure>"
            for panel, uri in zip(PANELS, plane.panels, strict=True)
        )
        + "</div>"
        for plane in case.planes
    )
    style = "case flagged" if row["flag"] else "case"
    quiet = " · ".join(["rank " + str(row["rank"]), *([groups] if groups else [])])
    return (
        f'<div class="{style}" id="{_anchor(row["case_id"])}"><h3>{name} <span class="quiet">{quiet}</span></h3>'
        f"{reason}<p>{', '.join(facts)}</p>{case.curve}{panels}</div>"
    )


def _all_cases(table: pd.DataFrame, axes: Sequence[str]) -> str:
    header = ["case", "rank", *axes, "loss", "stale loss", "drawn", "Dice", "flag score"]
    rows = []
    for row in table[table["rank"].notna()].to_dict("records"):
        cells = [escape(str(row["case_id"])), str(row["rank"])]
        cells += [escape(str(row[axis])) if pd.notna(row[axis]) else "" for axis in axes]
        cells += [_number(row["loss"]), _number(row["stale_loss"])]
        cells += [str(row["visits"]) if pd.notna(row["visits"]) else "", _number(row["dice_mean"], 2)]
        cells.append(_number(row["flag_score"], 2))
        rows.append(("worst" if row["flag"] else "", cells))
    return f"<details><summary>{len(rows)} cases, hardest first</summary>{html_table(header, rows)}</details>"


def _problems(table: pd.DataFrame) -> str:
    items = "".join(
        f"<li><b>{escape(row['case_id'])}</b>: {escape(row['problem'])}</li>" for row in table.to_dict("records")
    )
    return f"<ul>{items}</ul>"


def _how(ranked_by: str, judge: str, notes: Sequence[str]) -> str:
    facts = [
        ("Rank", f"by the training loss of the whole volume, without augmentation: {ranked_by}."),
        (
            "Labels that look wrong",
            f"The network ({judge}) is sure of a class where its probability is at least {LEAST_SURE:g}, and at least "
            "the mean one of the voxels labelled so (Northcutt et al. 2021, arXiv:1911.00068, equation 2). In dispute "
            f"is where it is sure of another class than the label, more than {BAND_VOXELS:g} voxels away from what is "
            f"labelled so. A label is flagged from {100 * STRUCTURE_SHARE:.0f} % of a structure or "
            f"{100 * TOTAL_SHARE:.0f} % of the whole labelled volume on: a flag score of 1. The volumes are the "
            "medians of these cases, or the case's own where that is larger.",
        ),
        (
            "What is not found",
            "Errors within the border, such as a structure drawn a little too large; errors that most labels share. A "
            "wrong label that a very long training has learned by heart may get no flag, though its early loss "
            "(early_epoch of the training) is high: look at the hardest cases without a flag too.",
        ),
        (
            "Dice and pictures",
            "of the same network. Dice is on its own grid; the mean over the structures that the label or the network "
            "has.",
        ),
        (
            "Curves",
            "the loss of the case's random patches whenever it was drawn (audit.bin). Gray: from the 10th to the 90th "
            "percentile of all cases in each epoch; dashed: their median.",
        ),
        *(("Note", note) for note in notes),
    ]
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts) + "</dl>"


def _number(value: Any, digits: int = 3) -> str:
    return "" if pd.isna(value) else f"{float(value):.{digits}f}"


def _anchor(case_id: object) -> str:
    return "case-" + "".join(c if c.isalnum() else "-" for c in str(case_id))
