"""The machine: devices, processes that train together, files, progress."""
