"""The receipt's measurements: parameters, multiply-accumulates, bytes on disk and latency, before and after."""
