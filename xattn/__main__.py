"""The command `xattn`, also as `python -m xattn`; without the libraries of the command line it says how to get them."""

from __future__ import annotations

import sys

from xattn.errors import MissingExtraError, needs


def main() -> None:
    """Entry point of the console script."""
    try:
        needs("cli", "the command xattn")
    except MissingExtraError as reason:
        sys.stderr.write(f"xattn: {reason}\n")
        sys.exit(2)
    from xattn.cli import main as run

    run()


if __name__ == "__main__":
    main()
