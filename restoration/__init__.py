"""Restoration of images that are blurred by a PSF that varies over the field."""
