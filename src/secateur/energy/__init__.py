"""Energy and latency as budgets: modelled on an array of multipliers, measured on a machine, fitted to widths, searched under."""
