"""Alerts: the risk of each conjunction, with its evidence, delivered to subscribers exactly once.

- ``risk``: the evidence by event time; the operator ``risk``
- ``outbox``: subscribers' rules, and the SQLite file in which an alert waits until it is acknowledged
- ``formats``: an alert as JSON (with its schema) and as a CCSDS Conjunction Data Message
- ``delivery``: HTTP delivery to each subscriber; the sink ``alerts``
- ``subscriber``: a reference subscriber, which receives each alert once
- ``metrics``: outcomes, outbox and latency as metrics
- ``notice``: an alert as a notice for people
"""
