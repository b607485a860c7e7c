"""`droseg overhead`: a table of measured costs that holds together, and refusals."""

from __future__ import annotations

import re

import pytest

from droseg.cli import main
from droseg.cli.overhead import VARIANTS, measure, table


def run(arguments: str) -> int:
    return main(["overhead", *arguments.split()])


def rows_of(text: str) -> dict[str, list[float]]:
    """Return the numbers of each line of the table."""
    lines = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines() if re.search(r"\d\.\d", line)]
    return {name: [float(value.rstrip(" %")) for value in values] for name, *values in lines}


def test_the_table_adds_up(capsys):
    assert run("--num-cases 200 --batch-size 4 --num-batches 20 --step-ms 250") == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "200 cases, batches of 4, 20 batches per epoch" in out
    rows = rows_of(out)
    assert all(len(values) == len(VARIANTS) for values in rows.values())
    for column in range(len(VARIANTS)):
        draw, update, epoch = (rows[name][column] for name in list(rows)[:3])
        total = rows["all of it, ms per step"][column]
        assert total == pytest.approx(draw + update + epoch / 20, abs=0.003)
        assert rows["of a step of 250 ms"][column] == pytest.approx(100 * total / 250, abs=0.002)
        assert 0 < total < 100
        assert 32 <= rows["memory, bytes per case"][column] <= 40


def test_an_epoch_is_one_pass_unless_said_otherwise(capsys):
    assert run("--num-cases 21 --batch-size 4") == 0
    assert "21 cases, batches of 4, 6 batches per epoch" in capsys.readouterr().out


def test_memory_is_that_of_the_arrays_and_grows_with_the_cases():
    small, large = (measure(size, 2, 10, VARIANTS["kl, target_ess"]) for size in (100, 1000))
    assert large.memory_bytes == 10 * small.memory_bytes == 32_000


def test_costs_are_shown_per_step_and_per_epoch():
    cost = measure(50, 2, 10, {})
    shown = rows_of(table({"one": cost}, 50, 10, None))
    assert shown["draw, ms per step"] == [pytest.approx(cost.draw_ms, abs=6e-4)]
    assert not any("of a step" in name for name in shown)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--num-cases 0 --batch-size 2", "--num-cases is 0"),
        ("--num-cases 10 --batch-size 0", "--batch-size is 0"),
        ("--num-cases 10 --batch-size 2 --num-batches 0", "--num-batches is 0"),
        ("--num-cases 10 --batch-size 2 --step-ms 0", "--step-ms is 0.0"),
        ("--num-cases 10 --batch-size 2 --step-ms nan", "--step-ms is nan"),
        ("--num-cases 3 --batch-size 4", "batch_size is 4 but there are 3 cases"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(arguments: str, message: str, capsys):
    assert run(arguments) != 0
    assert message in capsys.readouterr().err
