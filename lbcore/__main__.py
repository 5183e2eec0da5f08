"""`python -m lbcore` is the command `lbcore`."""

from lbcore.cli import main

if __name__ == "__main__":
    main()
