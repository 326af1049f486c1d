"""
The ledger itself: deterministic, no clock, no randomness, no input or output.

A command is what is asked (`commands`), a decision is what was answered and journaled
(`decisions`). `decide` looks at the state and changes nothing; `apply` changes the state and
never refuses. Live traffic runs both, recovery runs only `apply`.
"""
