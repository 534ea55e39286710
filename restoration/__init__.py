"""Deconvolution under a blur that varies over the field."""
