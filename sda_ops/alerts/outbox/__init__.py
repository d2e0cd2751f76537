"""The outbox: what subscribers want, and the SQLite file in which alerts wait until they are acknowledged."""
