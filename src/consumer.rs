//! The single writer of each partition.
