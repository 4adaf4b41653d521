"""Which channels go, why, and the proof that taking them out is sound."""
