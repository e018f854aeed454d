"""`python -m plif_lightning`, the same as `plif-lightning` and main.py."""

from plif_lightning.cli import main

if __name__ == "__main__":
    main()
