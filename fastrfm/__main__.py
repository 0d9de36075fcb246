"""``python -m fastrfm``: the same as the ``fastrfm`` command."""

from __future__ import annotations

from fastrfm.cli import main

if __name__ == "__main__":
    main(prog_name="fastrfm")
