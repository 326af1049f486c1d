"""
One part in a plain process: `python -m actors shard 0`, `python -m actors write-behind 0`.

A shard is named by its number, a write-behind by that of its database in the settings.

SIGTERM drains and ends; the settings come from the environment.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

from actors.child_process import end_with_parent
from actors.hosting import ShardHost, WriteBehindHost
from configs.build import build_id
from configs.logs import write_json_logs
from configs.settings import load_settings


def main(arguments: list[str]) -> int:
    end_with_parent()
    write_json_logs()
    settings = load_settings()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    match arguments:
        case ["shard", shard_id]:
            shard_host = ShardHost(int(shard_id), settings, build=build_id())
            shard_host.start()
            stop.wait()
            shard_host.drain()
        case ["write-behind", database_number]:
            WriteBehindHost(int(database_number), settings).start()
            stop.wait()
        case _:
            print("usage: python -m actors shard ID | write-behind NUMBER", file=sys.stderr)
            return 2
    # The loop's thread is ended with the process: everything that matters is durable.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
