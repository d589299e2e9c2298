"""Addresses with a password in them: shown and saved without it.

MLFLOW_TRACKING_URI may have one. Configs, checkpoints, logs and messages have the address that
`tracking_uri` returns; `restore_secret` puts the secret back where MLflow's client is made.
"""

from __future__ import annotations

import os
import re

HIDDEN = "***"
REMEDY = (
    "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, or put "
    "the whole address into MLFLOW_TRACKING_URI"
)

# What stays, in parentheses, and a secret. A user may contain an @, a password a slash, too.
PASSWORD = r"[^\n@]*(?:@[^\s/?#@]*)*(?=@)"
OF_DATABASE = rf"((?<!http)(?<!https)://)[^\s/?#:\[]*:{PASSWORD}"
OF_SERVER = rf"(https?://)[^\s/?#:\[]*:(?!\d*(?:[/?#\s]|$)){PASSWORD}"  # no port before a path
TOKEN = r"(https?://)[^\s/?#@:]+(?=@)"  # in place of the user
PARAMETER = (
    r"([?&;](?:[^\s=&#]*(?:passw|passphrase|pwd|secret|token|credential|api_?key|access_?key|"
    r"signature|odbc_connect)[^\s=&#]*|pass|sig)=)[^\s&#]+"
)
SECRETS = [re.compile(s, re.IGNORECASE) for s in (OF_DATABASE, OF_SERVER, TOKEN, PARAMETER)]


def redact(text: str) -> str:
    """The text with *** for each user and password, token or ?password= in an address."""
    for secret in SECRETS:
        text = secret.sub(rf"\1{HIDDEN}", text)
    return text


def tracking_uri() -> str | None:
    """MLFLOW_TRACKING_URI without its secret; None stands for the repository's own store."""
    return redact(os.environ.get("MLFLOW_TRACKING_URI", "")) or None


def restore_secret(address: str) -> str | None:
    """The address with the secret that `redact` took out, or None where there is none.

    MLFLOW_TRACKING_URI, if it is the same place; else the address itself, whose password MLflow's
    client takes from MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or from
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
