//! The program. Everything is in the library; see `lib.rs` for a tour.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    flashsale::cli::main()
}
