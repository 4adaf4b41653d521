"""Latency: timing processes, the protocol that judges them, and what is known of the target devices."""
