"""Procedure step recognition: component logic over detections.

`procedure` holds what a task's steps are, `detections` reads detected assembly states, `logic`
turns them into completed steps frame by frame (B1, B2, B3), `confidence_sums` is what B2 and B3
accumulate.
"""
