"""Sharp objects, blurred with known PSFs, as labelled patches on disk."""
