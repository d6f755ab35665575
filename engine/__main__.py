"""``python -m engine``."""

import sys


def main() -> None:
    """Run the command and exit with its status."""
    from engine import address_space

    address_space.require()  # before anything that would end the process without a word
    from engine.cli import main as run

    sys.exit(run())


if __name__ == "__main__":
    main()
