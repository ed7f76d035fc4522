"""The demonstration: a small network on scikit-learn's digits, trained, pruned both ways, saved, loaded and measured.

Everything a visitor wants to know once: does accuracy hold, does it beat a random control, does the file shrink, do zeros
survive training, does the file load into the original class bit for bit, and did anything get faster? (Masks alone: no.)
"""

from secateur.demo.digits import Batches, DigitsNet, digits, digits_task, fit
from secateur.demo.running import Demo, Row, run_demo

__all__ = ["Batches", "Demo", "DigitsNet", "Row", "digits", "digits_task", "fit", "run_demo"]
