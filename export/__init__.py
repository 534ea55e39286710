"""Networks for other programs: ONNX files and BioImage.IO packages."""
