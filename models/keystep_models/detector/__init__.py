"""Assembly states in pictures: any ONNX detector in a layout that exporters write."""
