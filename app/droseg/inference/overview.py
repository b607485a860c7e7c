"""overview.html: every case of a prediction run on one self-contained page, what needs a look first."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from string import Template
from typing import Final

from droseg import __version__
from droseg.data.regions import Structures
from droseg.data.writing import write_text
from droseg.inference.case_pictures import PLANES, case_pictures, picture_path, save_pictures, structure_colors
from droseg.inference.domain import plain
from droseg.inference.names import printable
from droseg.inference.quality import Flag
from droseg.report.style import CSS

__all__ = ["OverviewCase", "case_pictures", "save_pictures", "write_overview"]

PAGE: Final = "overview.html"
STATUSES: Final = {  # in the order of the page's counts
    "ok": "segmented",
    "failed": "failed",
    "out_of_domain": "refused (out of domain)",
    "skipped": "skipped",
}
_SECTIONS: Final = {
    "failed": "Not segmented",
    "look": "With a flag",
    "ok": "Without a flag",
    "skipped": "Skipped: no candidates",
}
_CSS = """
.notice { border: 1px solid var(--line); border-left: 4px solid var(--other); padding: 8px 14px; font-size: 0.9375rem; }
.badge { display: inline-block; font-size: 0.8125rem; font-weight: 650; padding: 1px 9px; border-radius: 99px;
  border: 1px solid currentColor; vertical-align: 2px; margin-left: 6px; white-space: nowrap; }
.badge.ok { color: var(--good); } .badge.look { color: var(--other); } .badge.failed { color: var(--bad); }
.badge.skipped { color: var(--quiet); }
.case.look { border-top-color: var(--other); } .case.failed { border-top-color: var(--bad); }
.case.skipped { border-top-color: var(--line); }
.case ul { margin: 2px 0 8px; padding-left: 20px; font-size: 0.875rem; }
.panels img { image-rendering: auto; object-fit: contain; aspect-ratio: 1; }
.volumes { display: flex; flex-wrap: wrap; gap: 2px 18px; font-variant-numeric: tabular-nums; }
"""
_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>$css</style>
</head>
<body>
<header>
<h1>$title</h1>
<p class="quiet">$subtitle</p>
<p class="notice"><b>Research software, not a medical device.</b> A case without a flag can be wrong, too: look at the
pictures, and at the label maps in a viewer, before anything rests on them.</p>
</header>
<main>
<div class="tiles">$tiles</div>
$sections
</main>
<footer>droseg $version</footer>
</body>
</html>
""")


@dataclass(frozen=True)
class OverviewCase:
    """What the page says about one case; its pictures are those in OUT/overview, if there are any.

    Attributes:
        status: "ok", "failed", "out_of_domain" or "skipped".
        volumes_ml: structure -> volume.
        flags: what to look at, most serious first.
        reason: why there is no segmentation, and what to do about it.
    """

    case_id: str
    status: str
    volumes_ml: Mapping[str, float] = field(default_factory=dict)
    flags: Sequence[Flag] = ()
    reason: str = ""


def write_overview(path: Path, cases: Sequence[OverviewCase], bundle_name: str, structures: Structures) -> None:
    """Write the page; it takes the pictures of `save_pictures` from the folder `overview` beside it.

    It is written whole or not at all. All pictures of a run are read for it: write it at the end of a run (also of an
    interrupted one), not after each case.

    Args:
        path: OUT/overview.html.
        cases: all of the run, in their order; those of an earlier run, too, if it is resumed.
        bundle_name: of the bundle that segmented them.
        structures: name -> label value, or several, as for `case_pictures`.

    Raises:
        OutputError: if the page cannot be written.
    """
    write_text(_page(path.parent, cases, bundle_name, structures), path)


def _page(out: Path, cases: Sequence[OverviewCase], bundle_name: str, structures: Structures) -> str:
    parts = [(heading, [case for case in cases if _kind(case) == kind]) for kind, heading in _SECTIONS.items()]
    to_look_at = sum(_kind(case) in ("look", "failed") for case in cases)
    legend = "".join(
        f'<span><i class="swatch" style="background: {color}"></i>{escape(name)}</span>'
        for name, color in structure_colors(structures).items()
    )
    sections = "".join(
        f'<section><h2>{heading} ({len(shown)})</h2><div class="cases">'
        f"{''.join(_card(out, case, structures) for case in shown)}</div></section>"
        for heading, shown in parts
        if shown
    )
    note = "<p class='note'>Each picture is the slice through most of the segmentation. R, L, A, P, S, I: right, left, "
    note += "front, back, up and down of the patient; the patient's right is on the left of the picture.</p>"
    return _PAGE.substitute(
        title=escape(f"Segmentations by {bundle_name}"),
        css=CSS + _CSS,
        subtitle=f"{len(cases)} case{'s' * (len(cases) != 1)}, {to_look_at} to look at",
        tiles=_tiles(cases),
        sections=f'<div class="legend" style="margin-top: 20px">{legend}</div>{note}{sections}',
        version=__version__,
    )


def _tiles(cases: Sequence[OverviewCase]) -> str:
    counts = Counter(case.status for case in cases)
    flagged = sum(case.status == "ok" and bool(case.flags) for case in cases)
    tiles = [(counts[status], text) for status, text in STATUSES.items() if counts[status]]
    tiles.insert(1 if counts["ok"] else 0, (flagged, "of these with a flag"))
    return "".join(f'<div class="tile"><b>{count}</b><span>{text}</span></div>' for count, text in tiles)


def _kind(case: OverviewCase) -> str:
    if case.status == "ok":
        return "look" if case.flags else "ok"
    return "skipped" if case.status == "skipped" else "failed"


def _card(out: Path, case: OverviewCase, structures: Structures) -> str:
    kind, name = _kind(case), escape(printable(case.case_id))
    badge = f"{len(case.flags)} flag{'s' * (len(case.flags) != 1)}" if kind == "look" else STATUSES[case.status]
    colors = structure_colors(structures)
    volumes = "".join(
        f'<span><i class="swatch" style="background: {colors[structure]}"></i>{escape(structure)} '
        f"<b>{plain(case.volumes_ml[structure])}</b> ml</span>"
        for structure in structures
        if structure in case.volumes_ml
    )
    flags = "".join(f"<li>{escape(_sentence(flag.message))}</li>" for flag in case.flags)
    return (
        f'<div class="case {kind}"><h3>{name}<span class="badge {kind}">{badge}</span></h3>'
        + (f"<p>{escape(_sentence(case.reason))}</p>" if case.reason else "")
        + (f"<ul>{flags}</ul>" if flags else "")
        + (f'<p class="volumes">{volumes}</p>' if volumes else "")
        + (_panels(out, case.case_id) if case.status == "ok" else "")
        + "</div>"
    )


def _panels(out: Path, case_id: str) -> str:
    """Return the pictures of a case as far as they are there."""
    figures = []
    for plane in PLANES:
        try:
            content = picture_path(out, case_id, plane).read_bytes()
        except (OSError, ValueError):
            continue
        uri = "data:image/png;base64," + base64.b64encode(content).decode()
        alt = f"{escape(printable(case_id))}, {plane} slice with the segmentation"
        figures.append(f'<figure><img src="{uri}" alt="{alt}"><figcaption>{plane}</figcaption></figure>')
    return f'<div class="panels">{"".join(figures)}</div>' if figures else '<p class="note">No pictures.</p>'


def _sentence(text: str) -> str:
    return (
        printable(text).strip().removesuffix(".") + "."
    )  # no capital: it may begin with the name of a structure or a file
