"""How a worker process is started, killed and reaped: the interface, plain local processes, and the threads for blocking calls."""
