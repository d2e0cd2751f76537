"""What is said about an approach: axes, ages, sizes, probabilities, orbit classes, fleets, formations."""
