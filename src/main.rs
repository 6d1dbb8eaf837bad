//! The program. Everything is in the library; see `lib.rs` for a tour.
#![forbid(unsafe_code)]

use std::process::ExitCode;

/// Requests are many small values that are made on one thread and dropped on another: glibc's allocator takes a sixth of an API's CPU time
/// for them, this one a few percent.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    flashsale::cli::main()
}
