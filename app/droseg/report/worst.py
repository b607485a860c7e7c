"""The worst cases of a run: a table always, pictures where there are images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from droseg.report.console import format_value, metric_label
from droseg.report.evidence import Evidence
from droseg.report.failures import failures_by_case
from droseg.report.pictures import Picture, worst_cases
from droseg.report.tables import breakable, html_table

_ROWS = 10


def worst_section(run: Evidence, pictures: Sequence[Picture], colors: Mapping[str, str], missing: str) -> str:
    """Return the worst cases of a run, by name and as pictures; or what is missing for the pictures."""
    table = f"<p class='note'>The worst {_ROWS} cases of {escape(run.name)}, failures counted.</p>{worst_table(run)}"
    if missing:
        return f"{table}<p>No pictures: {escape(missing)}</p>"
    return table + _pictures(run.name, run.main_metric, pictures, colors)


def worst_table(run: Evidence) -> str:
    """Return one row per case: its groups, value, worst structure and what failed."""
    metric = run.main_metric
    label = metric_label(metric)
    header = ["case", *map(escape, run.axes), label, "worst structure", f"its {label}", "failures"]
    groups = run.cases.drop_duplicates("case_id").set_index("case_id")
    why = failures_by_case(run.cases)
    rows = []
    for case_id, structure, value, own in worst_cases(run.cases, metric, _ROWS):
        cells = [case_id, *(_group(groups.loc[case_id, axis]) for axis in run.axes)]
        cells += [format_value(value, metric), structure, format_value(own, metric), str(why.get(case_id, "–"))]
        rows.append(("", [breakable(cell) for cell in cells]))
    return html_table(header, rows, "text")


def _group(value: object) -> str:
    return "–" if value is None or value != value else str(value)


def _pictures(name: str, metric: str, pictures: Sequence[Picture], colors: Mapping[str, str]) -> str:
    """Return the worst cases as pictures."""
    legend = "".join(
        f'<span><i class="swatch" style="background: {color}"></i>{escape(structure)}</span>'
        for structure, color in colors.items()
    )
    note = (
        f"<p class='note'>Worst cases of {escape(name)}. The slice with most wrong voxels of the case's worst "
        "structure, which is outlined in white. Axial and coronal slices show the patient's right on the left, "
        "sagittal ones the front.</p>"
    )
    return (
        f'{note}<div class="legend">{legend}</div><div class="cases">'
        + "".join(_picture(picture, metric) for picture in pictures)
        + "</div>"
    )


def _picture(picture: Picture, metric: str) -> str:
    value, own = format_value(picture.value, metric), format_value(picture.structure_value, metric)
    head = f"<h3>{escape(picture.case_id)}</h3>"
    text = f"{metric_label(metric)} {value}; worst: <b>{escape(picture.structure)}</b>, {own}"
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
