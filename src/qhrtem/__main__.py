"""`python -m qhrtem` is `qhrtem`."""

from qhrtem.cli import main

if __name__ == "__main__":
    main()
