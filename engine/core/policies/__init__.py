"""Scheduling policies by name: pure orderings and limits; the scheduler moves, they only decide."""
