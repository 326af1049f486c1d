"""
The way in: HTTP, the command line.

The HTTP process never loads Ray.
"""
