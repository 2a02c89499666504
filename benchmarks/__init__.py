"""Measurements beside others, and how costs grow; run from a clone (docs/performance.md)."""
