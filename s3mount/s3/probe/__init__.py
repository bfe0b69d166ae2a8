"""Trials of a store: what it honours, found out with objects that are removed again."""
