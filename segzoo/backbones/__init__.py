"""Image -> features, finest first; one file per paper."""
