"""Checkpoint to bundle. Nothing is imported here: parts of this package must load on a robot without torch."""
