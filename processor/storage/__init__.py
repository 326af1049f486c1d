"""
Postgres: the journal, what is projected from it, and the server for those who have none.

The only floor that imports asyncpg.
"""
