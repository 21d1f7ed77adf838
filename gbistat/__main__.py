"""``python -m gbistat`` is ``gbistat``."""

from gbistat.cli import main

if __name__ == "__main__":
    main()
