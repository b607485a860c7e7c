"""Tables for a paper, table.md and table.tex, in the form that its author asks for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from droseg.errors import InputError
from droseg.metrics.groups import ALL
from droseg.metrics.names import tail_percentile
from droseg.report.console import SIZE_LEGEND, format_value, metric_label, size_sign
from droseg.report.evidence import Evidence, Row
from droseg.report.failures import MISSED, failures
from droseg.report.subgroups import MEAN

WORDS = (
    *("mean", "std", "median", "iqr", "ci", "worst", "cvar10", "p5", "p10", "p25", "p75", "p90", "p95"),
    *("n", "n_patients", "n_undefined", "n_missed"),
)
"""What a format may hold; everything else in it stays as it is."""
_PAIRS = {"iqr": ("p25", "p75")}
_OF_THE_MEAN = ("mean", "std")  # "mean±std [ci]": the interval is that of the mean
_LATEX = {
    **{"\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#"},
    **{"_": r"\_", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "−": "$-$", "–": "--"},
    **{"†": r"$^\dagger$", "‡": r"$^\ddagger$", "⁺": "$^{+}$", "⁻": "$^{-}$", "<": "$<$", ">": "$>$", "*": r"$\times$"},
}


@dataclass(frozen=True)
class Column:
    """One column of a table: a metric of one structure, and how to write it.

    Attributes:
        metric: name of the metric.
        structure: name of the structure, or `MEAN`.
        form: e.g. "mean±std" or "p10[ci]"; its `WORDS` are replaced by numbers, `ci` by the interval of the one before.
    """

    metric: str
    structure: str
    form: str

    def title(self) -> str:
        """Return the heading."""
        of = "" if self.structure == MEAN else f", {self.structure}"
        return f"{metric_label(self.metric)}{of}, {_spaced(self.form)}"

    def cell(self, row: Row | None) -> str:
        """Return the numbers of one group."""
        if row is None:
            return "–"
        owners = iter(_owners(self.form))
        return re.sub(r"\w+", lambda word: _number(row, word.group(), self.metric, next(owners)), _spaced(self.form))


def parse_columns(texts: Sequence[str], run: Evidence) -> list[Column]:
    """Return the columns of `--table METRIC[@STRUCTURE]:FORM`; `@*` is one column for each structure.

    Without texts: Dice as mean±std and HD95 as median [iqr], if there; else the main metric as mean±std.

    Raises:
        InputError: if a metric, a structure or a word of a form is unknown.
    """
    if not texts:
        usual = {"dice": "mean±std", "hd95_mm": "median[iqr]"}
        found = [Column(m, MEAN, form) for m, form in usual.items() if m in run.metrics]
        return found or [Column(run.main_metric, MEAN, "mean±std")]
    columns = []
    structures = [str(s) for s in dict.fromkeys(run.penalized["structure"])]
    for text in texts:
        what, found_colon, form = text.partition(":")
        metric, _, structure = what.partition("@")
        if not (found_colon and form):
            raise InputError(f"--table {text}: expected METRIC:FORM, e.g. dice:mean±std or hd95_mm:median[iqr].")
        if metric not in run.metrics:
            raise InputError(f"--table {text}: no metric '{metric}'; those here: {', '.join(run.metrics)}.")
        if structure not in ("", "*", *structures):
            raise InputError(f"--table {text}: no structure '{structure}'; those here: {', '.join(structures)}.")
        words = re.findall(r"\w+", form)
        unknown = [word for word in words if word not in WORDS]
        if unknown or not words:
            what = f"'{unknown[0]}' is no number of a group" if unknown else "it names no number"
            raise InputError(f"--table {text}: {what}; there are {', '.join(WORDS)}.")
        for word, owner in zip(words, _owners(form), strict=True):
            if word == "ci" and _bounds(owner, metric) is None:
                raise InputError(
                    f"--table {text}: there is no interval of {owner}; those of {metric}: mean[ci], "
                    f"p{tail_percentile(metric)}[ci], cvar10[ci]."
                )
        chosen = [s for s in structures if s != MEAN] if structure == "*" else [structure or MEAN]
        columns += [Column(metric, name, form) for name in chosen]
    return columns


def paper_table(runs: Sequence[Evidence], columns: Sequence[Column]) -> tuple[list[str], list[list[str]], str]:
    """Return header, rows (group, n, missed, then per column one cell for each run) and the notes below.

    Failures are counted. The reference comes first; a superscript + or - says "helped" or "hurt" against it.
    """
    reference = runs[0].reference
    sides = [*([reference] if reference is not None else []), *runs]
    header = ["group", "n", next(iter(failures(runs[0].cases)))]  # missed, or failed if no one knows
    for column in columns:
        header += [column.title() + (f", {side.name}" if len(sides) > 1 else "") for side in sides]
    tables = [_by_key(side) for side in sides]
    verdicts = [_verdicts(side) for side in sides]
    rows = []
    for axis, group in _groups(runs[0]):
        first = tables[-len(runs)].get((axis, group, MEAN, columns[0].metric))
        name = "all" if axis == ALL else f"{axis} = {group}"
        counts = ["–", "–"]
        if first is not None:
            counts = [f"{first['n']}{size_sign(str(first['size']))}", str(int(first["n_missed"]))]
        row = [name, *counts]
        for column in columns:
            key = (axis, group, column.structure, column.metric)
            row += [
                column.cell(table.get(key)) + {"helped": "⁺", "hurt": "⁻"}.get(words.get(key, ""), "")
                for table, words in zip(tables, verdicts, strict=True)
            ]
        rows.append(row)
    return header, rows, _notes(runs, columns)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], notes: str) -> str:
    """Return the table in Markdown, and the notes below."""
    escaped = [[cell.replace("|", "\\|").replace("*", "\\*") for cell in row] for row in [header, *rows]]
    return f"{markdown_table(escaped[0], escaped[1:])}\n\n{notes}\n"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return the table in Markdown, its cells as they are; the first column to the left, the others to the right."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, rule, *rows])


def latex(header: Sequence[str], rows: Sequence[Sequence[str]], notes: str, caption: str = "Results per group.") -> str:
    r"""Return the table for LaTeX with booktabs; a \midrule between axes, the notes below."""
    lines = [
        "% Needs \\usepackage{booktabs} in the preamble.",
        "\\begin{table}",
        "\\centering",
        f"\\caption{{{_escape(caption)}}}",
        f"\\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
        "\\toprule",
        _line(header),
    ]
    axis = None
    for row in rows:
        own = row[0].partition(" = ")[0]
        if own != axis:
            lines.append("\\midrule")
        axis = own
        lines.append(_line(row))
    notes_below = f"\\par\\smallskip{{\\footnotesize {_escape(notes)}}}"
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", notes_below, "\\end{table}", ""])


def _line(cells: Sequence[str]) -> str:
    return " & ".join(map(_escape, cells)) + r" \\"


def _escape(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)


def _spaced(form: str) -> str:
    """Return the form with a space before a bracket and around ±: "median [iqr]"."""
    return re.sub(r"\s*±\s*", " ± ", re.sub(r"(?<=\w)\s*(?=[\[(])", " ", form))


def _owners(form: str) -> list[str]:
    """Return per word of a form the number that a "ci" there belongs to: the last one before it, else the mean."""
    owners, last = [], "mean"
    for word in re.findall(r"\w+", form):
        owners.append(last)
        if word != "ci" and not word.startswith("n"):
            last = "mean" if word in _OF_THE_MEAN else word
    return owners


def _bounds(word: str, metric: str) -> tuple[str, str] | None:
    """Return the columns of the interval of a number; None if it has none."""
    names = {"mean": "ci", f"p{tail_percentile(metric)}": "tail_ci", "cvar10": "cvar10_ci"}
    return (f"{names[word]}_low", f"{names[word]}_high") if word in names else None


def _number(row: Row, word: str, metric: str, owner: str) -> str:
    if word.startswith("n"):
        return str(int(row[word]))
    parts = _bounds(owner, metric) if word == "ci" else None
    columns: tuple[str, ...] = parts or _PAIRS.get(word) or (word,)
    return ", ".join(format_value(row[column], metric) for column in columns)


def _groups(run: Evidence) -> list[tuple[str, str]]:
    return list(dict.fromkeys(zip(run.penalized["axis"], run.penalized["group"], strict=True)))


def _by_key(side: Evidence) -> Mapping[tuple[str, str, str, str], Row]:
    return {(r["axis"], r["group"], r["structure"], r["metric"]): r for r in side.penalized.to_dict("records")}  # type: ignore[misc]


def _verdicts(side: Evidence) -> Mapping[tuple[str, str, str, str], str]:
    if side.comparison is None:
        return {}
    rows = side.comparison.table.to_dict("records")
    return {(r["axis"], r["group"], r["structure"], r["metric"]): str(r["verdict"]) for r in rows}


def _notes(runs: Sequence[Evidence], columns: Sequence[Column]) -> str:
    notes = "Failures counted: a missed or false-positive structure has Dice and NSD 0, and as distance the image "
    notes += "diagonal. " if "diagonal_mm" in runs[0].cases.columns else "diagonal (here: the largest distance). "
    if any(column.structure == MEAN for column in columns):
        notes += "Without a structure in the heading: mean over the structures of a case. "
    if any("iqr" in column.form for column in columns):
        notes += "iqr: 25th and 75th percentile. "
    if any("ci" in re.findall(r"\w+", column.form) for column in columns):
        notes += "ci: 95 % bootstrap interval over patients, of the number before it. "
    kind = next(iter(failures(runs[0].cases)))
    what = "miss a structure" if kind == MISSED else "have Dice or NSD 0 and no distance of a structure"
    notes += f"n: cases; {kind}: cases of {runs[0].name} that {what}. {SIZE_LEGEND}"
    if runs[0].comparison is not None:
        notes += f" ⁺ helped, ⁻ hurt against {runs[0].baseline_name}. {runs[0].comparison.rule()}"
    return notes
