"""
Runnable examples: scenarios that are told on a running ledger, a payout file, the demo around it.
"""
