"""
How commands flow into a shard and results out of it: wire, batching, gate, admission.

Time and randomness are arguments here; sockets and databases are behind `ports`.
"""
