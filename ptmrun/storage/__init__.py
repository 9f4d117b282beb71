"""Bytes on disk: written as a whole, read as plain data."""
