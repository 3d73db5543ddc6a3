"""Sterna: an open live-migration protocol."""
