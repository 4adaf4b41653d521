"""Exported files and the runtimes that serve them (installed as `edgeprune.export`)."""
