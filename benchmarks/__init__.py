"""Measurements against the implementations people use now. Each module prints one table and can write it as JSON."""
