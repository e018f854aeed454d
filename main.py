"""Command line: python main.py COMMAND ...; without a command it says which there are."""

from plif_lightning.cli import main

if __name__ == "__main__":
    main()
