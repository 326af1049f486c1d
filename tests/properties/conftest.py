"""
How long properties are searched: HYPOTHESIS_PROFILE chooses `dev` (the default), `ci` or `night`.

A failure prints the commands of its smallest form, and the line that repeats it.
"""

from __future__ import annotations

import os

from hypothesis import settings

COMMON = settings(deadline=None, print_blob=True)
settings.register_profile("dev", parent=COMMON, max_examples=150)
settings.register_profile("ci", parent=COMMON, max_examples=400)
settings.register_profile("night", parent=COMMON, max_examples=20_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))
