"""Restoration networks beside their official algorithms run plainly, system by system."""
