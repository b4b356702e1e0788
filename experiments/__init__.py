"""Measurements, and what the demo and the tests share with them. Uses only the commands and their reports."""
