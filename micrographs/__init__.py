"""A user's image file: its pixels as counts, its optics, its camera."""
