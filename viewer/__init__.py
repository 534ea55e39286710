"""Window for napari: estimate a map, see the PSF under the cursor, restore, save."""
