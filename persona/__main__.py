"""`python -m persona …`: the command `persona`, for a checkout that is not installed."""

from persona.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
