"""Where the repository lies: all that runs make goes there, wherever they are started."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
CONF = REPOSITORY / "conf"

# In a run's output folder.
LAST = Path("checkpoints", "last.pt")
BEST = Path("checkpoints", "best.pt")
FIGURES = Path("figures")
SERVED = Path("served_model.pt")  # exported, for the tracker
