"""
The load harness: offers load from outside, over HTTP, and says what was held.

Rule 1: it imports nothing of the ledger. It starts one with `miliano up` and checks it with
        `miliano verify`, as a user would; the load comes from this process, not from theirs.
Rule 2: three rates are told apart: accepted (replies), durable (the verified journal), projected
        (the tables, once they have caught up). Books that do not balance are no result.
Rule 3: nothing is offered twice: every request has a key of its own.
"""
