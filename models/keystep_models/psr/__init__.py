"""Procedure step recognition: component logic over detections."""
