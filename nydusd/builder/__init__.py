"""Writes images: a directory tree in, bootstrap and blob out."""
