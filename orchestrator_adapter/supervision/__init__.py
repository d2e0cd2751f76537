"""What follows from the exit of an operator instance: tasks, restart policies, the supervisor, the watchdog."""
