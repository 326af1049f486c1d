"""
The ledger without its processes: what decides (`core`), flows (`flow`) and lasts (`storage`).
"""
