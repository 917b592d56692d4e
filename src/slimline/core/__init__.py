"""Data and contracts: what every other part agrees on. Imports nothing of Slimline but ``errors``."""
