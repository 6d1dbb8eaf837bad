//! The migrations are compiled in; a new file must rebuild the program.
fn main() {
    println!("cargo:rerun-if-changed=migrations");
    println!("cargo:rerun-if-env-changed=FLASHSALE_GIT_REVISION");
}
