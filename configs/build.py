"""
Which build this is: the version, and a digest of the code that decides.
"""

from __future__ import annotations

import functools
import hashlib
from importlib.metadata import version
from pathlib import Path

import processor.core


@functools.cache
def build_id() -> str:
    """
    Return for example `0.1.0+3f9a0c21`: equal ids decide alike.
    """
    digest = hashlib.sha256()
    for path in sorted(Path(processor.core.__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return f"{version('miliano')}+{digest.hexdigest()[:8]}"
