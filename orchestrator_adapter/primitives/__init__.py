"""What every room is built on: errors, clock, wake-ups, metrics, the event log. Imports nothing from the other rooms."""
