"""Reproduce the claims of the lin-RFM paper (arXiv 2401.04553): measurements, tables, plots and one page.

    python scripts/reproduce_paper.py --quick --out somewhere
    python scripts/reproduce_paper.py --full

Measurements are kept in OUT/CLAIM.csv as they come; what is there is not measured again, so a run that was stopped goes
on, and the page can be made at any time. The claims live in ``paper_*``, one file an idea.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import click
import pandas
from bench_common import describe_machine
from paper_completion import COMPLETION
from paper_depth import DEPTH
from paper_irls import EQUIVALENCE, SPEED
from paper_records import Claim, Records
from paper_scale import SCALE
from paper_sparse import SPARSE

from fastrfm.atomic import writing

CLAIMS = {claim.name: claim for claim in (EQUIVALENCE, SPEED, COMPLETION, SPARSE, DEPTH, SCALE)}
PAGE = Path(__file__).parent.parent / "docs" / "paper"


def measure(claim: Claim, folder: Path, is_quick: bool, seeds: int | None, deadline: float) -> int:
    """Measure what is not yet kept; return how much is left undone."""
    records = Records(folder / f"{claim.name}.csv")
    left = 0
    for setting in claim.settings(is_quick):
        if records.has(setting) or (seeds is not None and setting["seed"] >= seeds):
            continue
        if time.monotonic() >= deadline:
            left += 1
            continue
        start = time.monotonic()
        records.add(setting, claim.measure(setting))
        words = ", ".join(f"{name} {value}" for name, value in setting.items())
        click.echo(f"{claim.name}: {words} ({time.monotonic() - start:.1f} s)", err=True)
    return left


def write_page(folder: Path) -> None:
    """Write README.md and the plots of every claim of which there are measurements."""
    about = folder / "machine.json"
    machines = json.loads(about.read_text()) if about.exists() else {}
    parts = [
        "# The paper's claims, reproduced\n",
        "Radhakrishnan, Belkin, Drusvyatskiy, *Linear Recursive Feature Machines provably recover low-rank matrices*, "
        "arXiv 2401.04553 (PNAS 2025). Made by `python scripts/reproduce_paper.py --full` from the measurements in the "
        "csv files beside this page; each claim says whether it was reproduced by what was measured. Error bars: 95 % "
        "intervals (Wilson) of shares, quartiles of times and errors, over seeds. Other programs may have run beside "
        "it: compare times in one table only.\n",
    ]
    for claim in CLAIMS.values():
        path = folder / f"{claim.name}.csv"
        if not path.exists():
            continue
        rows = Records(path).frame()
        parts += [f"## {claim.title}\n", f"{claim.statement}\n"]
        parts += [claim.report(rows, folder / f"{claim.name}.png")]
        parts += [f"![{claim.title}]({claim.name}.png)\n", f"{_seeds(rows)} {machines.get(claim.name, '')}\n"]
    with writing(folder / "README.md", force=True) as aside:
        aside.write_text("\n".join(parts), encoding="utf-8")


def _seeds(rows: pandas.DataFrame) -> str:
    """Return how many seeds there are, by size and method where it is not the same for all."""
    keys = [name for name in ("n", "method") if name in rows]
    counts = rows.groupby(keys)["seed"].nunique() if keys else pandas.Series([rows["seed"].nunique()])
    least, most = int(counts.min()), int(counts.max())
    return f"Seeds: {most}." if least == most else f"Seeds: {least} to {most}, as the table says."


def note_machine(folder: Path, name: str) -> None:
    """Keep on what machine a claim was measured last."""
    path = folder / "machine.json"
    machines = json.loads(path.read_text()) if path.exists() else {}
    machines[name] = f"Measured on {describe_machine()}."
    with writing(path, force=True) as aside:
        aside.write_text(json.dumps(machines, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--quick", "size", flag_value="quick", help="Tiny problems: shows within three minutes that all runs.")
@click.option("--full", "size", flag_value="full", help="Everything: a night's work.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder. [default: docs/paper]")
@click.option("--claim", "names", type=click.Choice(list(CLAIMS)), multiple=True, help="Only these.")
@click.option("--seeds", type=click.IntRange(min=1), help="At most so many instances of each kind.")
@click.option("--minutes", type=click.FloatRange(min=0), help="Begin no measurement after this time, claim by claim.")
def main(size: str | None, out: Path | None, names: tuple[str, ...], seeds: int | None, minutes: float | None) -> None:
    """Reproduce the claims of the lin-RFM paper; without --quick or --full, only make the page of what was measured."""
    if size == "quick" and out is None:
        raise click.UsageError("--quick needs --out: its tiny problems have no place among the measurements of --full")
    folder = out if out is not None else PAGE
    folder.mkdir(parents=True, exist_ok=True)
    left = 0
    for name in (names or CLAIMS) if size else ():
        deadline = time.monotonic() + 60.0 * minutes if minutes is not None else float("inf")
        left += measure(CLAIMS[name], folder, size == "quick", seeds, deadline)
        note_machine(folder, name)
    write_page(folder)
    click.echo(f"{folder / 'README.md'} written" + (f"; {left} measurements left for another run" if left else ""))


if __name__ == "__main__":
    main()
