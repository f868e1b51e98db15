"""Latency profiles as JSON files, read by `engine.core.latency_profile`; no code."""
