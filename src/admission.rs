//! Admission: what can be refused before the log.
