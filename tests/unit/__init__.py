"""Each module of `src/`, by itself: no network, no clock, no sleeping."""
