"""Receipts as text, JSON and HTML."""
