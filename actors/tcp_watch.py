"""
Notices a machine that is gone: TCP alone keeps a half-open connection for a quarter of an hour.
"""

from __future__ import annotations

import asyncio
import socket

GONE_MS = 10_000


def watch_tcp(transport: asyncio.BaseTransport) -> None:
    """
    Let the connection end when the other machine is silent for `GONE_MS`; nothing for Unix sockets.
    """
    connection = transport.get_extra_info("socket")
    if connection is None or connection.family not in (socket.AF_INET, socket.AF_INET6):
        return
    seconds = GONE_MS // 1000
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, seconds // 2)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, seconds // 4)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, GONE_MS)
