"""How this program is called: as `python main.py` in a checkout, as `plif-lightning` where it is installed."""

import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
_MAIN = _ROOT / "main.py"
_IS_CHECKOUT = _MAIN.is_file() and (_ROOT / "configs" / "base.yaml").is_file()


def shown() -> str:
    """The program as a person types it."""
    return "python main.py" if _IS_CHECKOUT else "plif-lightning"


def command() -> list[str]:
    """The program as another process is started."""
    return [sys.executable, str(_MAIN)] if _IS_CHECKOUT else [sys.executable, "-m", "plif_lightning"]
