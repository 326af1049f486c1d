"""
Faults on the whole product under load, and a checker that believes nobody.

`operations` keeps what clients asked and heard, `clients` ask, `faults` kill and split, `checker`
compares what was heard with what the ledger shows in the end; `python -m tests.chaos` runs it all.

Rule: the checker knows the API alone. It reads every wallet's history, and shares no code with the
ledger or its auditor.
"""
