"""Compression as code: the project file, what is out of date, the lock, the gate, and what they tell machines and people."""
