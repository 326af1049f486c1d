"""
Faults on the whole product under load, and a checker that believes nobody.

`operations` keeps what clients asked and heard, `stories` think of holds, refunds and linked
transfers, `requests` words them, `clients` ask, `faults` kill and split; `checker` compares what
was heard with the histories in the end, `money` with holds, refunds and what is available;
`python -m tests.chaos` runs it all.

Rule: the checker knows the API alone. It reads every wallet's history, every hold and what went
back, and shares no code with the ledger or its auditor.
"""
