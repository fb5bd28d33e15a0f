"""Journals: where facts are kept."""
