"""The package that is trained once and served for ever."""
