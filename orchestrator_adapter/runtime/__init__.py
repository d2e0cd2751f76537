"""A graph that runs: wiring, one ``OperatorRun`` for each vertex, the supervision loop, shutdown, status."""
