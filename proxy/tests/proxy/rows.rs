//! The turns of a data directory, as rows that tests can compare.
