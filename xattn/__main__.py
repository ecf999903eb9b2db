"""`python -m xattn` is the command `xattn`."""

from __future__ import annotations

from xattn.cli import main

if __name__ == "__main__":
    main()
