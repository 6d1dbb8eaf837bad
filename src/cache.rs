//! Redis: hints only. Empty, stale or down, the service is slower or stricter, never wrong.
