"""Chaos: one fault at one step of a move, drawn from a seed, and what became of the process."""
