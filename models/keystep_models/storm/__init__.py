"""STORM-PSR's spatio-temporal stream without torch: data sets, sampling, bundles, predictions.

Over whole recordings: `clip_predictions`. Live: `clip_window`, `clip_model`, `clip_recogniser`.
"""
