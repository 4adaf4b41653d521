"""Wins back the accuracy that pruning cost, with the dense network as the teacher."""

from edgeprune.recovery.recover import recover

__all__ = ["recover"]
