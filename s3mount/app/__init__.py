"""Builds the parts of a mount and wires them; the only room that knows them all."""
