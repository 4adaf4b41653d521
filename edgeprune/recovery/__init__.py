"""Wins back the accuracy that pruning cost, with the dense network as the teacher."""
