"""
One gateway process: `python -m gateway`, with the settings from file and environment.
"""

from __future__ import annotations

import sys

from configs.logs import write_json_logs
from configs.settings import SettingsError, load_settings
from gateway.server import serve


def main() -> int:
    # Late, as all of actors here; this part of it knows nothing of Ray.
    from actors.child_process import end_with_parent  # noqa: PLC0415

    end_with_parent()
    write_json_logs()
    try:
        serve(load_settings())
    except SettingsError as error:
        print(f"gateway: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
