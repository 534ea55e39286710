"""Steps of `reproduce.py`, and the numbers that they should reach."""
