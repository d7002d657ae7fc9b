"""``python -m adaneg_openood``: OpenOOD's scripts with this package's methods known, or the commands.

``python -m adaneg_openood main.py --config ...`` runs a Python script as ``python main.py --config ...``
would; anything else goes to ``adaneg-openood``.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run what the command line names."""
    if len(sys.argv) > 1 and sys.argv[1].endswith(".py"):
        from adaneg_openood.openood.launcher import run_script

        run_script(sys.argv[1], sys.argv[2:])
    else:
        from adaneg_openood.cli import app

        app(prog_name="python -m adaneg_openood")


if __name__ == "__main__":
    main()
