"""Where the repository lies: all that runs make goes there, wherever they are started."""

from pathlib import Path

from mnist_exp.errors import BadInput

REPOSITORY = Path(__file__).resolve().parents[2]
CONF = REPOSITORY / "conf"

config_dirs = [CONF]  # where the groups and their options are looked for, in this order


def add_config_dir(folder: str) -> None:
    """Look for options in this folder, too, as --config-dir asks. Raises BadInput."""
    path = Path(folder).absolute()
    if not path.is_dir():
        raise BadInput(f"--config-dir {folder}: there is no such folder")
    config_dirs[1:] = [path]


# In a run's output folder.
LAST = Path("checkpoints", "last.pt")
BEST = Path("checkpoints", "best.pt")
METRICS = "metrics.jsonl"
FIGURES = Path("figures")
SERVED = Path("served_model.pt")  # exported, for the tracker
# In a sweep's folder.
SWEEP = "sweep.json"


def is_name(text: str) -> bool:
    """Whether it can name a folder: on one line, without a slash or backslash, not . or .."""
    return text.isprintable() and not set(text) & set("/\\") and text.strip() not in ("", ".", "..")
