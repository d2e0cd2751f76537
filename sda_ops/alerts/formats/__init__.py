"""An alert as JSON, with its schema, and as a CCSDS Conjunction Data Message."""
