"""What people and programs read of a screening: tables, counts, pictures, conjunction messages."""
