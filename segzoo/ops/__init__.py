"""Pure functions of arrays, without parameters: what `layers` and `models` compute with."""
