"""A run on the disk: its folder and files, who holds it, its stored settings, and what starting it again means."""
