"""How this program is called: as `python main.py` in a checkout, as `plif-lightning` where it is installed."""

import sys
from pathlib import Path

_MAIN = Path(__file__).resolve().parents[2] / "main.py"


def shown() -> str:
    """The program as a person types it."""
    return "python main.py" if _MAIN.is_file() else "plif-lightning"


def command() -> list[str]:
    """The program as another process is started."""
    return [sys.executable, str(_MAIN)] if _MAIN.is_file() else [sys.executable, "-m", "plif_lightning"]
