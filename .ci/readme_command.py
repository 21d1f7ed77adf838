"""Print the command that stands under a marker in the README: readme_command.py README.md NAME."""

from __future__ import annotations

import re
import sys
from pathlib import Path


def command(text: str, name: str) -> str:
    """Return the fenced block after ``<!-- command: name -->``."""
    found = re.search(rf"<!-- command: {re.escape(name)} -->\s*```sh\n(.*?)```", text, flags=re.DOTALL)
    if found is None:
        raise SystemExit(f"the README has no command {name!r}")
    return found.group(1).strip()


if __name__ == "__main__":
    sys.stdout.write(command(Path(sys.argv[1]).read_text(encoding="utf-8"), sys.argv[2]) + "\n")
