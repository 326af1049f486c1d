"""
Folders for Unix sockets, whose paths may have 107 bytes at most.

The folder is a temporary one; a link in the data folder leads there, so that a user finds it
and the next start removes what a killed one has left.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path


def make_short_dir(link: Path) -> Path:
    """
    Make an empty private folder with a short path, and *link* to it in place of the last one.
    """
    remove_short_dir(link)
    folder = Path(tempfile.mkdtemp(prefix=f"miliano-{link.name}-"))
    link.symlink_to(folder)
    return folder


def remove_short_dir(link: Path) -> None:
    """
    Remove the folder and the link; no matter if there are none.
    """
    if link.is_symlink():
        shutil.rmtree(link.readlink(), ignore_errors=True)
        link.unlink()
