"""
How every process writes its log: one JSON object a line, on standard error.

Tracebacks come without the values of variables: a header or a setting may be a secret.
"""

from __future__ import annotations

import sys

import structlog


def write_json_logs() -> None:
    """
    Set this up; called first thing by a process.
    """
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(default=str),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
