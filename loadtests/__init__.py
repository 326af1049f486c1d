"""
The load harness: offers load from outside, over HTTP, and says what was held.

It imports nothing of the ledger; it starts one with `miliano up` and checks it with
`miliano verify`, as a user would.
"""
