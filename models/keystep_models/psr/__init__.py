"""Procedure step recognition: component logic over detections and clips.

What a task's steps are: `procedure`, `procedure_document` (Keystep's own files),
`procedure_files` (any of them). What is seen: `detections`, `clips`. From it to completed steps,
frame by frame: `logic` (B1, B2, B3), `temporal` (branch 2), `fusion` and `soft_voting` (STORM-PSR),
over `confidence_sums` and `merged_steps`, and `tracker`; `methods` names them all, `recogniser` is
how a command or a server drives any of them. Files of whole recordings: `truth`, `steps_files`,
`recording_files`; `timeline_picture` draws them.
"""
