"""On the device: photographs in, protected features out."""
