"""
Runnable examples: a payout file and the demo around it.
"""
