"""STORM-PSR's spatio-temporal stream without torch: data sets, sampling, bundles, predictions."""
