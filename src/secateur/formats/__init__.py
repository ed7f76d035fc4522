"""One file a storage format; the folder is the registry.

Every format says in its own way **which positions are stored**; the values follow as they are, in row-major order.
"""
