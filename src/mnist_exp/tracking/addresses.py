"""MLflow's address, without ever showing or saving a password in it.

MLFLOW_TRACKING_URI may contain one. Configs, checkpoints, logs and messages contain the address
that `tracking_uri` returns; `restore_secret` restores the secret for MLflow's client.
"""

from __future__ import annotations

import os

from mnist_exp.errors import HIDDEN, redact

REMEDY = (
    "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, or put "
    "the whole address into MLFLOW_TRACKING_URI"
)


def tracking_uri() -> str | None:
    """MLFLOW_TRACKING_URI without its secret; None means the repository's own store."""
    return redact(os.environ.get("MLFLOW_TRACKING_URI", "")) or None


def restore_secret(address: str) -> str | None:
    """The address with the secret that `redact` removed, or None if the secret is unknown.

    This is MLFLOW_TRACKING_URI if it names the same place; else the address itself, for which
    MLflow's client reads MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or
    MLFLOW_TRACKING_TOKEN.
    """
    place, today = strip_user(address), os.environ.get("MLFLOW_TRACKING_URI", "")
    if strip_user(today) == place:
        return today
    if HIDDEN not in address:
        return address
    by_client = os.environ.keys() & {"MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"}
    return place if by_client and HIDDEN not in place else None


def strip_user(address: str) -> str:
    return redact(address).replace(f"{HIDDEN}@", "")
