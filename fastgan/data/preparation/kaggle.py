"""Data sets of Kaggle, through its own client."""

import re
from pathlib import Path

from fastgan.errors import UserError

PREFIX = "kaggle:"


def get(name: str) -> Path:
    """Return the folder of the Kaggle data set OWNER/NAME, fetched if need be. Raises UserError where it can't be."""
    handle = name.removeprefix(PREFIX)
    if not re.fullmatch(r"[\w-]+/[\w.-]+", handle, re.ASCII):
        raise UserError(f"unknown data set {name!r}: give kaggle:OWNER/NAME, as in the address of its page")
    try:
        import kagglehub
    except ImportError:
        raise UserError(f"{name} needs the client kagglehub: pip install 'fastgan[kaggle]'") from None
    try:
        return Path(kagglehub.dataset_download(handle))
    except Exception as error:  # the client raises its own errors, those of its network library, and of the disk
        raise UserError(f"cannot get {name} ({_short(error)}): {_remedy(error)}") from None


def _short(error: Exception) -> str:
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said[:200]}" if said else type(error).__name__


def _remedy(error: Exception) -> str:
    """What fixes it, by the server's answer where there was one."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if status in (401, 403) or kinds & {"UnauthenticatedError", "CredentialError"}:
        return "log in with `kagglehub.login()` or set KAGGLE_USERNAME and KAGGLE_KEY, and accept its rules on its page"
    if status == 404:
        return "check its owner and name"
    if kinds & {"ConnectionError", "Timeout", "TimeoutError"}:
        return "check the network, or unpack it by hand and give the folder"
    return "fetch it by hand and give the folder"
