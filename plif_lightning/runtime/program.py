"""Command that starts this program: `python main.py` in a checkout, `plif-lightning` if it is installed."""

import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
_MAIN = _ROOT / "main.py"
_IS_CHECKOUT = _MAIN.is_file() and (_ROOT / "configs" / "base.yaml").is_file()


def shown() -> str:
    """Return the command as a user types it."""
    return "python main.py" if _IS_CHECKOUT else "plif-lightning"


def installing(extra: str) -> str:
    """Return the command that installs what an extra of this package brings, as a user types it."""
    return f"pip install '{'.' if _IS_CHECKOUT else 'plif_lightning'}[{extra}]'"


def command() -> list[str]:
    """Return the arguments that start the program in another process."""
    return [sys.executable, str(_MAIN)] if _IS_CHECKOUT else [sys.executable, "-m", "plif_lightning"]
