"""Doors to others' worlds. They never import each other."""
