"""Compiled loops: arrays in, arrays out. One file per idea; nothing here knows files, options or classes."""
