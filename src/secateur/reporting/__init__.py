"""Receipts shown: as text for a terminal, as JSON, as one self-contained HTML page. Nothing here measures."""
